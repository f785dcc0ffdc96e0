#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::same_bits, test::values_of;

const std::vector<int64_t> kRows = {0, 3, 3, 10, 4, 0};  // a token may be asked for several times, in any order
const std::vector<float> kScales = {1.0f, -0.3f, 0.0f, 0.7f, 1e-3f, 2.0f};

TEST(GatherRows, CopiesRowsBitByBit) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = random_tensor({11, 37}, dtype, 1);
    Tensor out = Tensor::empty({6, 37}, dtype);

    gather_rows(x, kRows, {}, out);

    for (size_t i = 0; i < kRows.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      EXPECT_TRUE(same_bits(out.rows(row, row + 1), x.rows(kRows[i], kRows[i] + 1))) << i;
    }
  }
}

TEST(GatherRows, RoundsTheScaledValueOnce) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = random_tensor({11, 37}, dtype, 2);
    const std::vector<float> values = values_of(x);
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      Tensor out = Tensor::empty({6, 37}, dtype);

      gather_rows(x, kRows, kScales, out);

      const std::vector<float> scaled = values_of(out);
      for (size_t i = 0; i < scaled.size(); ++i) {
        const float exact = values[static_cast<size_t>(kRows[i / 37]) * 37 + i % 37] * kScales[i / 37];
        ASSERT_EQ(scaled[i], dtype == DType::kBF16 ? round_to_bf16(exact) : exact) << i;
      }
    }
  }
}

TEST(GatherRows, RejectsRowsThatAreNotThere) {
  const Tensor x = random_tensor({2, 3}, DType::kF32, 3);
  Tensor out = Tensor::empty({1, 3}, DType::kF32), none = Tensor::empty({0, 3}, DType::kF32);

  EXPECT_THROW(gather_rows(x, {2}, {}, out), Error);
  EXPECT_THROW(gather_rows(x, {-1}, {}, out), Error);
  EXPECT_THROW(gather_rows(x, {0}, {1.0f, 2.0f}, out), Error);
  EXPECT_NO_THROW(gather_rows(x, {}, {}, none));  // an expert that no token chose
}

TEST(AddRows, AddsWeightedRowsRoundingProductAndSum) {
  const std::vector<int64_t> rows = {8, 0, 5};
  const std::vector<float> weights = {0.3f, -1.7f, 1.0f};
  const Tensor x = random_tensor({9, 35}, DType::kF32, 4), y = random_tensor({3, 35}, DType::kF32, 5);
  std::vector<float> expected = values_of(x);
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t c = 0; c < 35; ++c) {
      volatile const float product = weights[i] * y.data<float>()[i * 35 + c];  // not to be fused with the sum
      expected[static_cast<size_t>(rows[i]) * 35 + c] += product;
    }

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard isa_guard(isa);
    const test::ThreadsGuard threads_guard(2);
    Tensor sum = Tensor::empty({9, 35}, DType::kF32);
    convert(x, sum);
    add_rows(sum, rows, weights, y);
    EXPECT_EQ(values_of(sum), expected) << static_cast<int>(isa);
  }
}

TEST(AddRows, RejectsRowsThatAreNotThere) {
  Tensor x = random_tensor({2, 3}, DType::kF32, 6);
  const Tensor y = random_tensor({1, 3}, DType::kF32, 7);

  EXPECT_THROW(add_rows(x, {2}, {1.0f}, y), Error);
  EXPECT_THROW(add_rows(x, {0, 1}, {1.0f, 1.0f}, y), Error);
}

}  // namespace
}  // namespace ptq::kernels
