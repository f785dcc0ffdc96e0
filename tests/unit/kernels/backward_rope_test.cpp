#include <gtest/gtest.h>

#include <numeric>

#include "kernels/backward_ops.h"
#include "tests/support/numeric_gradient.h"

namespace ptq::kernels {
namespace {

using test::random_tensor;

TEST(RopeBackward, AgreesWithDifferences) {
  for (const bool interleaved : {false, true})
    for (const int64_t tokens : {1, 7, 33}) {
      const RopeShape shape{.head_dim = 22, .offset = 3, .rotary_dim = 14, .interleaved = interleaved};
      const Tensor x = random_tensor({tokens, 2 * 22}, DType::kF32, 1), dy = random_tensor({tokens, 2 * 22}, DType::kF32, 2);
      // Any tables: an attention factor makes cosines and sines of another radius than 1.
      const Tensor cos = random_tensor({40, 7}, DType::kF32, 3), sin = random_tensor({40, 7}, DType::kF32, 4);
      const Tensor positions = Tensor::empty({tokens}, DType::kI32);
      std::iota(positions.data<int32_t>(), positions.data<int32_t>() + tokens, 5);
      Tensor d = converted(dy, DType::kF32);

      rope_backward(d, shape, positions, cos, sin);

      EXPECT_LT(test::gradient_error(d, x, dy, [&] { return test::rope_in_f64(x, shape, positions, cos, sin); }), 1e-6)
          << interleaved << ", " << tokens;
    }
}

TEST(ExpandLatentBackward, PutsTheGradientsWhereTheValuesCameFrom) {
  constexpr int64_t kHeads = 3, kNope = 5, kRotary = 4, kValue = 6, kTokens = 7;
  const Tensor dk = random_tensor({kTokens, kHeads * (kNope + kRotary)}, DType::kF32, 5);
  const Tensor dv = random_tensor({kTokens, kHeads * kValue}, DType::kF32, 6);
  Tensor dkv = Tensor::empty({kTokens, kHeads * (kNope + kValue)}, DType::kF32);
  Tensor by_head = Tensor::empty({kTokens, kHeads * kRotary}, DType::kF32), dk_rot = Tensor::empty({kTokens, kRotary}, DType::kF32);

  expand_latent_backward(dk, dv, kHeads, kNope, dkv, by_head);
  add_query_heads(by_head, 1, kRotary, dk_rot);

  // Expansion copies: the gradient of what was read is the sum of those of all places that it went to.
  const Tensor kv = random_tensor(dkv.shape(), DType::kF32, 7), k_rot = random_tensor(dk_rot.shape(), DType::kF32, 8);
  const Tensor both = Tensor::empty({1, dk.numel() + dv.numel()}, DType::kF32);
  std::copy_n(dk.data<float>(), dk.numel(), both.data<float>());
  std::copy_n(dv.data<float>(), dv.numel(), both.data<float>() + dk.numel());
  const auto op = [&] {
    Tensor k = Tensor::empty(dk.shape(), DType::kF32), v = Tensor::empty(dv.shape(), DType::kF32);
    expand_latent(kv, k_rot, kHeads, kNope, k, v);
    std::vector<double> out(k.data<float>(), k.data<float>() + k.numel());
    out.insert(out.end(), v.data<float>(), v.data<float>() + v.numel());
    return out;
  };
  EXPECT_LT(test::gradient_error(dkv, kv, both, op), 1e-6);
  EXPECT_LT(test::gradient_error(dk_rot, k_rot, both, op), 1e-6);
}

}  // namespace
}  // namespace ptq::kernels
