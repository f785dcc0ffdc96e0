// Statistics of columns and of rows, against plain loops, on every instruction set.

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/search_ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::values_of;

/// Conversion to f16 is by search in the tests: those are small.
bool is_slow(DType dtype, const Shape& shape) { return dtype == DType::kF16 && shape[1] > 130; }
const Shape kShapes[] = {{1, 1}, {3, 7}, {33, 130}, {5, 600}};

TEST(ColumnAmax, IsTheLargestMagnitudeSoFar) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    for (const Shape& shape : kShapes) {
      if (is_slow(dtype, shape)) continue;
      const Tensor x = random_tensor(shape, dtype, 1);
      const std::vector<float> values = values_of(x);
      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard guard(isa);
        Tensor amaxes = test::tensor_of(std::vector<float>(static_cast<size_t>(shape[1]), 0.5f), {shape[1]});

        column_amax(x, amaxes);

        for (int64_t c = 0; c < shape[1]; ++c) {
          float expected = 0.5f;
          for (int64_t t = 0; t < shape[0]; ++t) expected = std::max(expected, std::fabs(values[static_cast<size_t>(t * shape[1] + c)]));
          ASSERT_EQ(values_of(amaxes)[static_cast<size_t>(c)], expected) << c;
        }
      }
    }
}

TEST(ColumnSums, CountRoundedElementsInFixedPoint) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    for (const Shape& shape : kShapes)
      for (const bool absolute : {true, false}) {
        if (is_slow(dtype, shape)) continue;
        const Tensor x = random_tensor(shape, dtype, 2, 3.0f);
        const std::vector<float> values = values_of(x);
        for (const cpu::Isa isa : test::available_isas()) {
          const test::IsaGuard guard(isa);
          std::vector<int64_t> sums(static_cast<size_t>(shape[1]), 7);

          column_sums(x, absolute, sums);

          for (int64_t c = 0; c < shape[1]; ++c) {
            int64_t expected = 7;
            for (int64_t t = 0; t < shape[0]; ++t) {
              const double value = static_cast<double>(values[static_cast<size_t>(t * shape[1] + c)]) * kColumnSumUnits;
              expected += std::llrint(absolute ? std::fabs(value) : value);
            }
            ASSERT_EQ(sums[static_cast<size_t>(c)], expected) << c;
          }
        }
      }
}

TEST(ColumnSums, RoundTiesToEvenAndTakeLargeAndSmallNumbers) {
  const std::vector<float> values = {0x1p-25f,       0x3p-25f,       -0x1p-25f,  -0x3p-25f, 0x1p-149f,
                                     0x1.000002p-1f, 0x1.fffffep38f, -0x1.8p30f, -0.0f};
  const Tensor x = test::tensor_of(values, {1, 9});
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    std::vector<int64_t> sums(9);

    column_sums(x, false, sums);

    for (size_t i = 0; i < sums.size(); ++i) EXPECT_EQ(sums[i], std::llrint(static_cast<double>(values[i]) * 0x1p24)) << i;
  }
}

TEST(RowDots, AreTheSameOnEveryInstructionSetAndNearTheExactSum) {
  for (const Shape& shape : kShapes) {
    const Tensor a = random_tensor(shape, DType::kF32, 3), b = random_tensor(shape, DType::kF32, 4);
    const std::vector<float> left = values_of(a), right = values_of(b);
    std::vector<double> first;
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      const test::ThreadsGuard threads(isa == cpu::Isa::kBaseline ? 1 : 2);
      std::vector<double> dots(static_cast<size_t>(shape[0]), 1e30);

      row_dots(a, b, dots);

      if (first.empty()) first = dots;
      ASSERT_EQ(dots, first);
      for (int64_t r = 0; r < shape[0]; ++r) {
        double expected = 0;
        for (int64_t c = 0; c < shape[1]; ++c) {
          const auto i = static_cast<size_t>(r * shape[1] + c);
          expected += static_cast<double>(left[i]) * static_cast<double>(right[i]);
        }
        ASSERT_NEAR(dots[static_cast<size_t>(r)], expected, 1e-12);
      }
    }
  }
}

TEST(Statistics, RejectShapesThatDoNotFit) {
  const Tensor x = Tensor::zeros({3, 5}, DType::kF32), y = Tensor::zeros({3, 4}, DType::kF32);
  Tensor four = Tensor::zeros({4}, DType::kF32);
  std::vector<int64_t> sums(4);
  std::vector<double> dots(3);

  EXPECT_THROW(column_amax(x, four), Error);
  EXPECT_THROW(column_sums(x, false, sums), Error);
  EXPECT_THROW(row_dots(x, y, dots), Error);
}

}  // namespace
}  // namespace ptq::kernels
