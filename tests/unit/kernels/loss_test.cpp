#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::values_of;

/// log softmax of a row in extended precision.
std::vector<long double> log_probabilities(const float* row, int64_t count) {
  long double highest = row[0], sum = 0;
  for (int64_t i = 1; i < count; ++i) highest = std::max<long double>(highest, row[i]);
  for (int64_t i = 0; i < count; ++i) sum += std::exp(static_cast<long double>(row[i]) - highest);
  std::vector<long double> result;
  for (int64_t i = 0; i < count; ++i) result.push_back(static_cast<long double>(row[i]) - highest - std::log(sum));
  return result;
}

TEST(TokenLosses, AgreeWithExtendedPrecisionOnOddVocabularies) {
  for (const int64_t vocabulary : {1, 7, 16, 33, 1003}) {
    const Tensor logits = random_tensor({5, vocabulary}, DType::kF32, 1, 6.0f);
    Tensor labels = Tensor::empty({5}, DType::kI32);
    for (int t = 0; t < 5; ++t) labels.data<int32_t>()[t] = static_cast<int32_t>(t * 31 % vocabulary);
    labels.data<int32_t>()[2] = -1;

    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      std::vector<double> losses;
      token_losses(logits, labels, losses);
      ASSERT_EQ(losses.size(), 5u);
      for (int64_t t = 0; t < 5; ++t) {
        const auto expected =
            t == 2 ? 0.0L
                   : -log_probabilities(logits.data<float>() + t * vocabulary, vocabulary)[static_cast<size_t>(labels.data<int32_t>()[t])];
        EXPECT_NEAR(losses[static_cast<size_t>(t)], static_cast<double>(expected), 1e-14 * (1 + std::fabs(static_cast<double>(expected))));
      }
    }
  }
}

TEST(TokenLosses, SurviveLogitsFarApart) {
  const Tensor logits = test::tensor_of({3000.0f, -3000.0f, 0.0f}, {1, 3});
  Tensor labels = Tensor::zeros({1}, DType::kI32);
  std::vector<double> losses;

  labels.data<int32_t>()[0] = 1;
  token_losses(logits, labels, losses);
  EXPECT_EQ(losses[0], 6000.0);
  labels.data<int32_t>()[0] = 0;
  token_losses(logits, labels, losses);
  EXPECT_EQ(losses[0], 0.0);
}

TEST(TokenAgreement, ResolvesAKlOfOneHundredThousandth) {
  const int64_t vocabulary = 4099;
  const Tensor reference = random_tensor({6, vocabulary}, DType::kF32, 2, 3.0f);
  Tensor logits = random_tensor({6, vocabulary}, DType::kF32, 3, 0.0045f);
  add_in_place(logits, reference);

  std::vector<TokenAgreement> result;
  token_agreement(reference, logits, result);

  for (int64_t t = 0; t < 6; ++t) {
    const auto p = log_probabilities(reference.data<float>() + t * vocabulary, vocabulary);
    const auto q = log_probabilities(logits.data<float>() + t * vocabulary, vocabulary);
    long double expected = 0;
    for (size_t v = 0; v < p.size(); ++v) expected += std::exp(p[v]) * (p[v] - q[v]);
    EXPECT_LT(static_cast<double>(expected), 3e-5);
    EXPECT_GT(static_cast<double>(expected), 1e-6);
    EXPECT_NEAR(result[static_cast<size_t>(t)].kl, static_cast<double>(expected), 1e-14);
  }
}

TEST(TokenAgreement, OfARowWithItselfIsExactlyZero) {
  const Tensor logits = random_tensor({2, 1001}, DType::kF32, 4, 3.0f);
  std::vector<TokenAgreement> result;

  token_agreement(logits, logits, result);

  EXPECT_EQ(result[0].kl, 0.0);
  EXPECT_TRUE(result[0].same_top1);
}

TEST(TokenAgreement, TakesTheLowestIndexAtTies) {
  const Tensor reference = test::tensor_of({1, 5, 5, 0, 5, 1, 0, 0}, {2, 4});
  const Tensor same = test::tensor_of({0, 9, 9, 9, 2, 2, 2, 2}, {2, 4}), other = test::tensor_of({0, 1, 9, 9, 0, 2, 2, 2}, {2, 4});
  std::vector<TokenAgreement> result;

  token_agreement(reference, same, result);
  EXPECT_TRUE(result[0].same_top1 && result[1].same_top1);
  token_agreement(reference, other, result);
  EXPECT_FALSE(result[0].same_top1 || result[1].same_top1);
}

TEST(TokenAgreement, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const Tensor reference = random_tensor({7, 501}, DType::kF32, 5, 4.0f), logits = random_tensor({7, 501}, DType::kF32, 6, 4.0f);
  std::vector<TokenAgreement> expected, result;
  token_agreement(reference, logits, expected);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard isa_guard(isa);
    const test::ThreadsGuard threads_guard(2);
    token_agreement(reference, logits, result);
    for (size_t t = 0; t < 7; ++t) EXPECT_EQ(result[t].kl, expected[t].kl);
  }
}

}  // namespace
}  // namespace ptq::kernels
