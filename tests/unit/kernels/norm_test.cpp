#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::relative_error;

constexpr float kEps = 1e-5f;

TEST(RmsNorm, AgreesWithF64OnOddWidths) {
  for (const int64_t width : {1, 17, 32, 130, 1000}) {
    const Tensor x = random_tensor({33, width}, DType::kF32, 1, 3.0f), w = random_tensor({width}, DType::kBF16, 2);
    Tensor out = Tensor::empty({33, width}, DType::kF32);

    rms_norm(x, w, kEps, out);

    EXPECT_LT(relative_error(out, test::rms_norm_in_f64(x, w, width, kEps)), 5e-7) << width;
  }
}

TEST(RmsNorm, RoundsOnceToBf16) {
  const Tensor x = random_tensor({5, 77}, DType::kF32, 3), w = random_tensor({77}, DType::kF32, 4);
  Tensor wide = Tensor::empty({5, 77}, DType::kF32), narrow = Tensor::empty({5, 77}, DType::kBF16);

  rms_norm(x, w, kEps, wide);
  rms_norm(x, w, kEps, narrow);

  for (int64_t i = 0; i < wide.numel(); ++i) ASSERT_EQ(narrow.data<BF16>()[i].bits, to_bf16(wide.data<float>()[i]).bits);
}

TEST(RmsNorm, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const Tensor x = random_tensor({33, 130}, DType::kF32, 5), w = random_tensor({130}, DType::kF16, 6);
  Tensor expected = Tensor::empty({33, 130}, DType::kF32), out = Tensor::empty({33, 130}, DType::kF32);
  rms_norm(x, w, kEps, expected);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard isa_guard(isa);
    const test::ThreadsGuard threads_guard(2);
    rms_norm(x, w, kEps, out);
    EXPECT_TRUE(test::same_bits(out, expected)) << static_cast<int>(isa);
  }
}

TEST(HeadRmsNorm, NormsEveryHeadByItself) {
  Tensor x = random_tensor({7, 3 * 24}, DType::kF32, 7);
  const Tensor w = random_tensor({24}, DType::kBF16, 8);
  const std::vector<double> expected = test::rms_norm_in_f64(x, w, 24, kEps);

  head_rms_norm(x, w, 24, kEps);

  EXPECT_LT(relative_error(x, expected), 5e-7);
}

TEST(HeadRmsNorm, WithoutAWeightIsAsWithOnes) {
  Tensor x = random_tensor({7, 3 * 21}, DType::kF32, 12), weighted = Tensor::empty({7, 3 * 21}, DType::kF32);
  convert(x, weighted);
  const Tensor ones = test::tensor_of(std::vector<float>(21, 1.0f), {21});
  const std::vector<double> expected = test::rms_norm_in_f64(x, ones, 21, kEps);

  head_rms_norm(x, Tensor{}, 21, kEps);
  head_rms_norm(weighted, ones, 21, kEps);

  EXPECT_LT(relative_error(x, expected), 5e-7);
  EXPECT_TRUE(test::same_bits(x, weighted));
}

TEST(LayerNorm1p, AgreesWithF64AndSubtractsALargeMean) {
  for (const int64_t width : {1, 31, 64, 333}) {
    Tensor x = random_tensor({9, width}, DType::kF32, 9);
    for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] += 50.0f;
    const Tensor w = random_tensor({width}, DType::kBF16, 10), bias = random_tensor({width}, DType::kF32, 11);
    const std::vector<double> expected = test::layer_norm_1p_in_f64(x, w, bias, kEps);
    Tensor out = Tensor::empty({9, width}, DType::kF32);

    layer_norm_1p(x, w, bias, kEps, out);

    EXPECT_LT(relative_error(out, expected), 4e-6) << width;  // the mean of 50 is rounded by 2⁻²⁴ · 50
  }
}

}  // namespace
}  // namespace ptq::kernels
