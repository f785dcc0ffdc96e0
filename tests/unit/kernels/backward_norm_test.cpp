#include <gtest/gtest.h>

#include "kernels/backward_ops.h"
#include "tests/support/numeric_gradient.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::gradient_error, test::random_tensor;

constexpr float kEps = 1e-5f;

TEST(RmsNormBackward, AgreesWithDifferences) {
  for (const int64_t tokens : {1, 7, 33})
    for (const int64_t width : {2, 17, 32, 130})
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const Tensor x = random_tensor({tokens, width}, DType::kF32, 1, 2.0f), w = random_tensor({width}, dtype, 2);
        const Tensor dy = random_tensor({tokens, width}, DType::kF32, 3);
        Tensor dx = Tensor::empty(x.shape(), DType::kF32);

        rms_norm_backward(x, w, kEps, dy, dx);

        EXPECT_LT(gradient_error(dx, x, dy, [&] { return test::rms_norm_in_f64(x, w, width, kEps); }), 2e-5) << tokens << " x " << width;
      }
}

TEST(RmsNormBackward, MayOverwriteWhatItComesFrom) {
  const Tensor x = random_tensor({33, 130}, DType::kF32, 4), w = random_tensor({130}, DType::kF16, 5);
  Tensor dy = random_tensor({33, 130}, DType::kF32, 6), dx = Tensor::empty({33, 130}, DType::kF32);

  rms_norm_backward(x, w, kEps, dy, dx);
  rms_norm_backward(x, w, kEps, dy, dy);

  EXPECT_TRUE(test::same_bits(dx, dy));
}

TEST(LayerNorm1pBackward, AgreesWithDifferences) {
  for (const int64_t tokens : {1, 7, 33})
    for (const int64_t width : {3, 31, 64, 131})
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        Tensor x = random_tensor({tokens, width}, DType::kF32, 7, 2.0f);
        for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] += 3.0f;
        const Tensor w = random_tensor({width}, dtype, 8), bias = random_tensor({width}, DType::kF32, 9);
        const Tensor dy = random_tensor({tokens, width}, DType::kF32, 10);
        Tensor dx = Tensor::empty(x.shape(), DType::kF32);

        layer_norm_1p_backward(x, w, kEps, dy, dx);

        EXPECT_LT(gradient_error(dx, x, dy, [&] { return test::layer_norm_1p_in_f64(x, w, bias, kEps); }), 5e-5)
            << tokens << " x " << width;
      }
}

TEST(HeadRmsNormBackward, AgreesWithDifferencesInPlace) {
  for (const int64_t head_dim : {5, 64}) {
    const Tensor x = random_tensor({7, 3 * head_dim}, DType::kF32, 11), w = random_tensor({head_dim}, DType::kBF16, 12);
    const Tensor dy = random_tensor({7, 3 * head_dim}, DType::kF32, 13);
    Tensor d = converted(dy, DType::kF32);

    head_rms_norm_backward(x, w, head_dim, kEps, d);

    EXPECT_LT(gradient_error(d, x, dy, [&] { return test::rms_norm_in_f64(x, w, head_dim, kEps); }), 2e-5) << head_dim;
  }
}

TEST(HeadRmsNormBackward, WithoutAWeightIsAsWithOnes) {
  const Tensor x = random_tensor({7, 3 * 21}, DType::kF32, 14), ones = test::tensor_of(std::vector<float>(21, 1.0f), {21});
  Tensor bare = random_tensor({7, 3 * 21}, DType::kF32, 15), weighted = converted(bare, DType::kF32);

  head_rms_norm_backward(x, Tensor{}, 21, kEps, bare);
  head_rms_norm_backward(x, ones, 21, kEps, weighted);

  EXPECT_TRUE(test::same_bits(bare, weighted));
}

TEST(NormBackward, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const Tensor x = random_tensor({33, 130}, DType::kF32, 16), w = random_tensor({130}, DType::kBF16, 17);
  const Tensor dy = random_tensor({33, 130}, DType::kF32, 18);
  Tensor rms = Tensor::empty(x.shape(), DType::kF32), layer = Tensor::empty(x.shape(), DType::kF32),
         out = Tensor::empty(x.shape(), DType::kF32);
  rms_norm_backward(x, w, kEps, dy, rms);
  layer_norm_1p_backward(x, w, kEps, dy, layer);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard isa_guard(isa);
    const test::ThreadsGuard threads_guard(2);
    rms_norm_backward(x, w, kEps, dy, out);
    EXPECT_TRUE(test::same_bits(out, rms)) << static_cast<int>(isa);
    layer_norm_1p_backward(x, w, kEps, dy, out);
    EXPECT_TRUE(test::same_bits(out, layer)) << static_cast<int>(isa);
  }
}

}  // namespace
}  // namespace ptq::kernels
