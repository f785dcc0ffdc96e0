#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

TEST(Rope, RotatesPairsHalfAHeadApartAndLeavesTheRest) {
  const int64_t tokens = 9, heads = 3, head_dim = 22, rotary_dim = 18, half = 9, positions = 40;
  Tensor cos = Tensor::empty({positions, half}, DType::kF32), sin = Tensor::empty({positions, half}, DType::kF32);
  const auto angle = [](int64_t p, int64_t i) { return static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / 9.0); };
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      cos.data<float>()[p * half + i] = static_cast<float>(std::cos(angle(p, i)));
      sin.data<float>()[p * half + i] = static_cast<float>(std::sin(angle(p, i)));
    }
  Tensor position = Tensor::empty({tokens}, DType::kI32);
  for (int64_t t = 0; t < tokens; ++t) position.data<int32_t>()[t] = static_cast<int32_t>(t * 4 % 37);
  const Tensor x = test::random_tensor({tokens, heads * head_dim}, DType::kF32, 1);
  std::vector<double> expected;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t head = 0; head < heads; ++head) {
      const float* const in = x.data<float>() + (t * heads + head) * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) {
        const double a = angle(position.data<int32_t>()[t], d % half);
        const double partner = d < half ? -static_cast<double>(in[d + half]) : static_cast<double>(in[d >= rotary_dim ? d : d - half]);
        expected.push_back(d < rotary_dim ? static_cast<double>(in[d]) * std::cos(a) + partner * std::sin(a) : static_cast<double>(in[d]));
      }
    }

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor rotated = Tensor::empty(x.shape(), DType::kF32);
    convert(x, rotated);
    rope_half(rotated, head_dim, rotary_dim, position, cos, sin);
    EXPECT_LT(test::relative_error(rotated, expected), 2e-7);
  }
}

TEST(Rope, RejectsAPositionOutsideTheTables) {
  Tensor x = Tensor::zeros({1, 4}, DType::kF32);
  const Tensor table = Tensor::zeros({3, 2}, DType::kF32);
  Tensor position = Tensor::zeros({1}, DType::kI32);
  position.data<int32_t>()[0] = 3;

  EXPECT_THROW(rope_half(x, 4, 4, position, table, table), Error);
}

}  // namespace
}  // namespace ptq::kernels
