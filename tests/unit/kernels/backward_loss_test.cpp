#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/backward_ops.h"
#include "tests/support/numeric_gradient.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::tensor_of;

Tensor labels_of(const std::vector<int32_t>& labels) {
  Tensor tensor = Tensor::empty({static_cast<int64_t>(labels.size())}, DType::kI32);
  std::copy(labels.begin(), labels.end(), tensor.data<int32_t>());
  return tensor;
}

TEST(CrossEntropyBackward, AgreesWithDifferencesAndSkipsRowsWithoutLabel) {
  const Tensor logits = random_tensor({7, 131}, DType::kF32, 1, 3.0f), labels = labels_of({0, 130, -1, 7, 64, -1, 33});
  Tensor d = converted(logits, DType::kF32);

  cross_entropy_backward(d, labels, 0.25f);

  const auto losses = [&] {
    std::vector<double> out;
    token_losses(logits, labels, out);
    return out;
  };
  EXPECT_LT(test::gradient_error(d, logits, tensor_of(std::vector<float>(7, 0.25f), {7}), losses, 1000), 1e-5);
  EXPECT_EQ(amax(d.rows(2, 3)).value, 0.0f);
  EXPECT_EQ(amax(d.rows(5, 6)).value, 0.0f);
}

TEST(DrawLabels, TakesTheTokenWhereTheRunningSumPassesTheChance) {
  for (const int64_t vocabulary : {1, 255, 1000, 70001}) {
    const std::vector<float> chances{0.0f, 0.1f, 0.5f, 0.9f, 0.99999994f, -1.0f};
    const auto rows = static_cast<int64_t>(chances.size());
    const Tensor logits = random_tensor({rows, vocabulary}, DType::kF32, 5, 3.0f);
    Tensor labels = Tensor::empty({rows}, DType::kI32);

    draw_labels(logits, tensor_of(chances, {rows}), labels);

    EXPECT_EQ(labels.data<int32_t>()[5], -1);
    for (int64_t t = 0; t < 5; ++t) {
      const float* row = logits.data<float>() + t * vocabulary;
      double sum = 0;
      for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(static_cast<double>(row[v]));
      const int32_t label = labels.data<int32_t>()[t];
      double before = 0;
      for (int64_t v = 0; v < label; ++v) before += std::exp(static_cast<double>(row[v])) / sum;
      const double after = before + std::exp(static_cast<double>(row[label])) / sum,
                   chance = static_cast<double>(chances[static_cast<size_t>(t)]);
      EXPECT_LE(before, chance + 1e-6) << vocabulary << ", " << t;
      EXPECT_GE(after, chance - 1e-6) << vocabulary << ", " << t;
    }
  }
}

TEST(CrossEntropyBackward, ANearlyCertainTokenKeepsItsSmallGradient) {
  Tensor d = tensor_of({20.0f, 0.0f, -300.0f}, {1, 3});

  cross_entropy_backward(d, labels_of({0}), 1.0f);

  const double other = std::exp(-20.0) / (1.0 + std::exp(-20.0));
  EXPECT_NEAR(static_cast<double>(d.data<float>()[0]) / -other, 1.0, 1e-6);
  EXPECT_NEAR(static_cast<double>(d.data<float>()[1]) / other, 1.0, 1e-6);
  EXPECT_EQ(d.data<float>()[2], 0.0f);
}

TEST(CrossEntropyBackward, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const Tensor logits = random_tensor({7, 131}, DType::kF32, 2, 3.0f), labels = labels_of({0, 130, -1, 7, 64, -1, 33});
  Tensor expected = converted(logits, DType::kF32);
  cross_entropy_backward(expected, labels, 1.0f);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard isa_guard(isa);
    const test::ThreadsGuard threads_guard(2);
    Tensor d = converted(logits, DType::kF32);
    cross_entropy_backward(d, labels, 1.0f);
    EXPECT_TRUE(test::same_bits(d, expected)) << static_cast<int>(isa);
  }
}

using Bins = std::array<int64_t, kSumBins>;

TEST(SquaredProducts, AnyOrderOfPiecesGivesTheSameBins) {
  const Tensor a = random_tensor({33, 2051}, DType::kF32, 3, 1e-3f), b = random_tensor({33, 2051}, DType::kF32, 4, 10.0f);
  Bins whole{};
  add_squared_products(a, b, whole);

  for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{0, 1, 7, 32, 33}, {0, 20, 33}})
    for (const cpu::Isa isa : test::available_isas())
      for (const int threads : {1, 2, 3}) {
        const test::IsaGuard isa_guard(isa);
        const test::ThreadsGuard threads_guard(threads);
        Bins ascending{}, descending{};
        for (size_t i = 0; i + 1 < cuts.size(); ++i) {
          const size_t j = cuts.size() - 2 - i;
          add_squared_products(a.rows(cuts[i], cuts[i + 1]), b.rows(cuts[i], cuts[i + 1]), ascending);
          add_squared_products(a.rows(cuts[j], cuts[j + 1]), b.rows(cuts[j], cuts[j + 1]), descending);
        }
        EXPECT_EQ(ascending, whole);
        EXPECT_EQ(descending, whole);
      }
}

TEST(SquaredProducts, TheValueIsTheSum) {
  const Tensor a = random_tensor({33, 130}, DType::kF32, 5), b = random_tensor({33, 130}, DType::kF32, 6);
  Bins bins{};
  add_squared_products(a, b, bins);

  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const float product = a.data<float>()[i] * b.data<float>()[i];
    sum += static_cast<double>(product * product);
  }
  EXPECT_NEAR(value_of(bins) / sum, 1.0, 1e-14);
}

TEST(SquaredProducts, SmallAndLargeTermsAndNaNCount) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  const auto sum_of = [](float product) {
    Bins bins{};
    add_squared_products(tensor_of({product}, {1, 1}), tensor_of({1.0f}, {1, 1}), bins);
    return value_of(bins);
  };

  EXPECT_EQ(sum_of(0.0f), 0.0);
  EXPECT_EQ(sum_of(-3.0f), 9.0);
  EXPECT_EQ(sum_of(0x1p-70f), 0x1p-140);  // a subnormal
  EXPECT_EQ(sum_of(0x1.8p-63f), 0x1.2p-125);
  for (const float beyond : {1e11f, -1e30f, kInfinity, kNaN}) EXPECT_EQ(sum_of(beyond), static_cast<double>(1e20f)) << beyond;
}

}  // namespace
}  // namespace ptq::kernels
