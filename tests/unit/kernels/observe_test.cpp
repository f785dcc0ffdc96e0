#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

const float kInf = std::numeric_limits<float>::infinity();

TEST(Amax, IsExactForEveryTypeAndInstructionSet) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Tensor x = test::random_tensor({7, 131}, dtype, 1);
    float expected = 0;
    for (const float value : test::values_of(x)) expected = std::max(expected, std::fabs(value));

    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      EXPECT_EQ(amax(x).value, expected);
      EXPECT_EQ(amax(x).non_finite_row, -1);
    }
  }
}

TEST(Amax, FindsItInTheLastElementOfManyTasks) {
  const test::ThreadsGuard guard(2);
  Tensor x = Tensor::zeros({1000, 333}, DType::kBF16);
  x.data<BF16>()[1000 * 333 - 1] = to_bf16(-7.0f);

  EXPECT_EQ(amax(x).value, 7.0f);
}

TEST(Amax, NamesTheFirstRowThatIsNotFiniteAndIgnoresItsValue) {
  const test::ThreadsGuard guard(2);
  Tensor x = test::random_tensor({50, 33}, DType::kF32, 2);
  x.data<float>()[0] = 100.0f;
  x.data<float>()[40 * 33 + 5] = std::nanf("");
  x.data<float>()[31 * 33 + 32] = -kInf;

  const Amax seen = amax(x);

  EXPECT_EQ(seen.non_finite_row, 31);
  EXPECT_EQ(seen.value, 100.0f);
}

TEST(Amax, CountsAVectorAsOneRow) {
  EXPECT_EQ(amax(test::tensor_of({1, 2, kInf}, {3})).non_finite_row, 0);
  EXPECT_EQ(amax(test::tensor_of({1, 2, kInf}, {3})).value, 2.0f);
}

TEST(Amax, OfZerosAndSubnormals) {
  EXPECT_EQ(amax(test::tensor_of({0.0f, -0.0f}, {1, 2})).value, 0.0f);
  EXPECT_EQ(amax(test::tensor_of({0.0f, -0x1p-149f}, {1, 2})).value, 0x1p-149f);
}

}  // namespace
}  // namespace ptq::kernels
