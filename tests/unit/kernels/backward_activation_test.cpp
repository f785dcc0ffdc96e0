#include <gtest/gtest.h>

#include "kernels/backward_ops.h"
#include "tests/support/numeric_gradient.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::gradient_error, test::random_tensor;

TEST(SiluMulBackward, IsTheGatedActivationsOnSeparateTensors) {
  for (const int64_t tokens : {1, 7, 33}) {
    const Tensor gate = random_tensor({tokens, 19}, DType::kF32, 1, 3.0f), up = random_tensor({tokens, 19}, DType::kF32, 2);
    const Tensor dy = random_tensor({tokens, 19}, DType::kF32, 3);
    Tensor dgate = Tensor::empty(gate.shape(), DType::kF32), dup = Tensor::empty(up.shape(), DType::kF32);
    const auto op = [&] {
      Tensor both = Tensor::empty({tokens, 2 * 19}, DType::kF32);
      place_columns(gate, 0, both);
      place_columns(up, 19, both);
      return test::gated_activation_in_f64(both, {});
    };

    silu_mul_backward(gate, up, dy, dgate, dup);

    EXPECT_LT(gradient_error(dgate, gate, dy, op), 1e-5) << tokens;
    EXPECT_LT(gradient_error(dup, up, dy, op), 1e-5) << tokens;
  }
}

TEST(SiluMulBackward, LargeGatesGiveTheLimits) {
  const Tensor gate = test::tensor_of({-1e4f, -200.0f, 200.0f, 1e4f}, {1, 4}), up = test::tensor_of({2, 2, 2, 2}, {1, 4});
  const Tensor dy = test::tensor_of({3, 3, 3, 3}, {1, 4});
  Tensor dgate = Tensor::empty({1, 4}, DType::kF32), dup = Tensor::empty({1, 4}, DType::kF32);

  silu_mul_backward(gate, up, dy, dgate, dup);

  const std::vector<float> by_gate = test::values_of(dgate), by_up = test::values_of(dup);
  EXPECT_NEAR(by_gate[0], 0.0f, 1e-30f);
  EXPECT_NEAR(by_gate[1], 0.0f, 1e-30f);
  EXPECT_EQ(by_gate[2], 6.0f);
  EXPECT_EQ(by_gate[3], 6.0f);
  EXPECT_NEAR(by_up[0], 0.0f, 1e-30f);
  EXPECT_EQ(by_up[3], 3e4f);
}

TEST(GatedActivationBackward, AgreesWithDifferencesAlsoWhereItClamps) {
  for (const bool interleaved : {false, true})
    for (const bool clamped : {false, true})
      for (const int64_t tokens : {1, 7, 33}) {
        const GatedShape shape{.interleaved = interleaved, .clamped = clamped, .alpha = 1.702f, .limit = 1.5f};
        const Tensor gate_up = random_tensor({tokens, 2 * 37}, DType::kF32, 4, 2.0f), dy = random_tensor({tokens, 37}, DType::kF32, 5);
        for (int64_t i = 0; i < gate_up.numel(); ++i) {  // no difference may reach over the kink
          float& x = gate_up.data<float>()[i];
          if (std::fabs(std::fabs(x) - shape.limit) < 0.01f) x = 0.5f;
        }
        Tensor d = Tensor::empty(gate_up.shape(), DType::kF32);

        gated_activation_backward(gate_up, shape, dy, d);

        EXPECT_LT(gradient_error(
                      d, gate_up, dy, [&] { return test::gated_activation_in_f64(gate_up, shape); }, 3000),
                  1e-5)
            << interleaved << clamped << ", " << tokens;
      }
}

TEST(GatedActivationBackward, OnlyWhatWasClampedHasNoGradient) {
  const GatedShape shape{.clamped = true};
  const Tensor gate_up = test::tensor_of({7.0f, 8.0f, -8.0f, 1.0f, 1.0f, 1.0f, 1.0f, 7.0f, -7.0f, 8.0f, -8.0f, 1.0f}, {1, 12});
  Tensor d = Tensor::empty({1, 12}, DType::kF32);

  gated_activation_backward(gate_up, shape, test::tensor_of(std::vector<float>(6, 1.0f), {1, 6}), d);

  const std::vector<float> gradients = test::values_of(d);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(gradients[i] == 0.0f, i == 1 || i == 9 || i == 10) << i;
}

TEST(ReluSquaredBackward, IsTwiceThePositivePart) {
  const Tensor x = test::tensor_of({-2.0f, 0.0f, 0.5f, 3.0f, -0.0f}, {1, 5}), dy = test::tensor_of({1, 2, 3, -4, 5}, {1, 5});
  Tensor dx = Tensor::empty({1, 5}, DType::kF32);

  relu_squared_backward(x, dy, dx);

  EXPECT_EQ(test::values_of(dx), (std::vector<float>{0, 0, 3, -24, 0}));
}

TEST(ActivationBackward, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const Tensor gate_up = random_tensor({33, 2 * 67}, DType::kF32, 6, 5.0f), dy = random_tensor({33, 67}, DType::kF32, 7);
  for (const bool interleaved : {false, true})
    for (const bool clamped : {false, true}) {
      const GatedShape shape{.interleaved = interleaved, .clamped = clamped};
      Tensor expected = Tensor::empty(gate_up.shape(), DType::kF32), d = Tensor::empty(gate_up.shape(), DType::kF32);
      gated_activation_backward(gate_up, shape, dy, expected);

      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard isa_guard(isa);
        const test::ThreadsGuard threads_guard(2);
        gated_activation_backward(gate_up, shape, dy, d);
        EXPECT_TRUE(test::same_bits(d, expected)) << static_cast<int>(isa);
      }
    }
}

}  // namespace
}  // namespace ptq::kernels
