#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

struct Tables {
  Tensor cos, sin;
};
Tables tables(int64_t positions, int64_t half) {
  Tables made{Tensor::empty({positions, half}, DType::kF32), Tensor::empty({positions, half}, DType::kF32)};
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      made.cos.data<float>()[p * half + i] = static_cast<float>(std::cos(angle));
      made.sin.data<float>()[p * half + i] = static_cast<float>(std::sin(angle));
    }
  return made;
}
Tensor some_positions(int64_t tokens) {
  Tensor positions = Tensor::empty({tokens}, DType::kI32);
  for (int64_t t = 0; t < tokens; ++t) positions.data<int32_t>()[t] = static_cast<int32_t>(t * 4 % 37);
  return positions;
}
Tensor rotated(const Tensor& x, const RopeShape& shape, const Tensor& positions) {
  const auto [cos, sin] = tables(40, shape.rotary_dim / 2);
  Tensor copy = Tensor::empty(x.shape(), DType::kF32);
  convert(x, copy);
  rope(copy, shape, positions, cos, sin);
  return copy;
}

TEST(Rope, RotatesPairsAndLeavesTheRest) {
  const int64_t tokens = 9, heads = 3;
  const Tensor positions = some_positions(tokens);
  for (const bool interleaved : {false, true})
    for (const RopeShape shape : {RopeShape{22, 0, 18, interleaved}, RopeShape{22, 4, 18, interleaved}, RopeShape{22, 3, 14, interleaved},
                                  RopeShape{64, 0, 64, interleaved}, RopeShape{5, 1, 2, interleaved}}) {
      const Tensor x = test::random_tensor({tokens, heads * shape.head_dim}, DType::kF32, 1);
      const auto [cos, sin] = tables(40, shape.rotary_dim / 2);
      const std::vector<double> expected = test::rope_in_f64(x, shape, positions, cos, sin);
      const Tensor first = rotated(x, shape, positions);

      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard guard(isa);
        const Tensor out = rotated(x, shape, positions);
        EXPECT_LT(test::relative_error(out, expected), 2e-7);
        EXPECT_TRUE(test::same_bits(out, first)) << static_cast<int>(isa);
      }
      for (int64_t i = 0; i < x.numel(); ++i) {
        const int64_t dim = i % shape.head_dim - shape.offset;
        if (0 <= dim && dim < shape.rotary_dim) continue;
        ASSERT_EQ(first.data<float>()[i], x.data<float>()[i]) << i;
      }
    }
}

TEST(Rope, TurnsTheFirstPairByOneRadianPerPosition) {
  const Tensor x = test::tensor_of({1, 0, 0, 1}, {2, 2});
  Tensor positions = Tensor::empty({2}, DType::kI32);
  positions.data<int32_t>()[0] = 2;
  positions.data<int32_t>()[1] = 0;

  const Tensor out = rotated(x, {.head_dim = 2, .rotary_dim = 2}, positions);

  EXPECT_FLOAT_EQ(out.data<float>()[0], std::cos(2.0f));
  EXPECT_FLOAT_EQ(out.data<float>()[1], std::sin(2.0f));
  EXPECT_EQ(out.data<float>()[2], 0.0f);
  EXPECT_EQ(out.data<float>()[3], 1.0f);
}

TEST(Rope, RejectsAPositionOutsideTheTables) {
  Tensor x = Tensor::zeros({1, 4}, DType::kF32);
  const Tensor table = Tensor::zeros({3, 2}, DType::kF32);
  Tensor position = Tensor::zeros({1}, DType::kI32);
  position.data<int32_t>()[0] = 3;

  EXPECT_THROW(rope(x, {.head_dim = 4, .rotary_dim = 4}, position, table, table), Error);
}

TEST(Rope, RejectsDimsBeyondTheHead) {
  Tensor x = Tensor::zeros({1, 8}, DType::kF32);
  const Tensor table = Tensor::zeros({3, 1}, DType::kF32), position = Tensor::zeros({1}, DType::kI32);

  EXPECT_THROW(rope(x, {.head_dim = 4, .offset = 3, .rotary_dim = 2}, position, table, table), Error);
}

}  // namespace
}  // namespace ptq::kernels
