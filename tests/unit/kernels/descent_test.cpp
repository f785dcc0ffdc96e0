// Descent on codes and on steps: their bits against one chain for each sum, their losses and optima against f64.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "tests/support/reference_search.h"
#include "tests/unit/kernels/isa_guard.h"
#include "tests/unit/kernels/search_inputs.h"

namespace ptq::kernels {
namespace {

using test::copy_of, test::gram_of, test::in_f64, test::kE2M1, test::kE4M3, test::kInt4, test::kInt4Symmetric, test::kInt8,
    test::random_tensor, test::same_bits, test::Steps, test::steps_for, test::values_of;

/// Every weight rounded to its grid.
Tensor rounded(const Tensor& w, const Steps& steps, const FeedbackGrid& grid) {
  Tensor q = Tensor::empty(w.shape(), DType::kF32);
  for (int64_t i = 0; i < w.numel(); ++i) {
    const int64_t row = i / w.dim(1), of = steps.of_column[static_cast<size_t>(i % w.dim(1))];
    const float step = steps.values.data<float>()[row * steps.values.dim(1) + of];
    q.data<float>()[i] = test::nearest_of(grid, w.data<float>()[i] / step) * step;
  }
  return q;
}

// ---- codes --------------------------------------------------------------------------------------------------------------------------

TEST(DescendCodes, IsOneChainOfFusedMultiplyAddsForEachWeightAndPass) {
  const Shape shapes[] = {{1, 1}, {3, 7}, {33, 130}, {16, 257}, {70, 390}};
  for (const Shape& shape : shapes)
    for (const FeedbackGrid& grid : {kInt4, kInt4Symmetric, kInt8, kE2M1, kE4M3}) {
      const Tensor w = random_tensor(shape, DType::kF32, 1), gram = gram_of(shape[1], 2);
      const Steps steps = steps_for(w, 16, test::largest_of(grid), true);
      const Tensor before = rounded(w, steps, grid);
      const std::vector<float> expected = test::descend_codes_by_fma(w, before, gram, steps.values, steps.of_column, grid, 2);
      for (const cpu::Isa isa : test::available_isas())
        for (const int threads : {1, 2}) {
          const test::IsaGuard isa_guard(isa);
          const test::ThreadsGuard threads_guard(threads);
          Tensor q = copy_of(before);
          descend_codes(w, q, gram, steps.values, steps.of_column, grid, 2);
          ASSERT_EQ(values_of(q), expected) << ptq::to_string(shape) << static_cast<int>(grid.kind) << static_cast<int>(isa) << threads;
        }
    }
}

TEST(DescendCodes, GivesTheCodesOfDescentInF64) {
  const Tensor w = random_tensor({64, 150}, DType::kF32, 3), gram = gram_of(150, 4);
  for (const FeedbackGrid& grid : {kInt4, kInt8, kE2M1, kE4M3}) {
    const Steps steps = steps_for(w, 30, test::largest_of(grid), false);
    Tensor q = rounded(w, steps, grid);
    const std::vector<double> expected = test::descend_codes_in_f64(w, q, gram, steps.values, steps.of_column, grid, 3);

    descend_codes(w, q, gram, steps.values, steps.of_column, grid, 3);

    // One weight at a tie that rounding decides otherwise may change others of its row.
    int64_t different_rows = 0;
    for (int64_t row = 0; row < 64; ++row) {
      bool is_different = false;
      for (int64_t i = row * 150; i < (row + 1) * 150; ++i)
        is_different |= std::fabs(static_cast<double>(q.data<float>()[i]) - expected[static_cast<size_t>(i)]) > 1e-6;
      different_rows += is_different;
    }
    EXPECT_LE(different_rows, 2) << static_cast<int>(grid.kind);
  }
}

TEST(DescendCodes, LowersTheLossOfEveryRowUntilNoSingleCodeCanDoBetter) {
  const Tensor w = random_tensor({35, 120}, DType::kF32, 5), gram = gram_of(120, 6);
  for (const FeedbackGrid& grid : {kInt4, kE2M1}) {
    const Steps steps = steps_for(w, 24, test::largest_of(grid), false);
    Tensor q = rounded(w, steps, grid);
    std::vector<double> before = test::row_losses(w, in_f64(q), gram);
    const std::vector<double> first = before;
    for (int pass = 0; pass < 30; ++pass) {
      descend_codes(w, q, gram, steps.values, steps.of_column, grid, 1);
      const std::vector<double> after = test::row_losses(w, in_f64(q), gram);
      for (size_t row = 0; row < after.size(); ++row) ASSERT_LE(after[row], before[row] * (1 + 1e-6)) << row << " " << pass;
      before = after;
    }
    for (size_t row = 0; row < first.size(); ++row) EXPECT_LT(before[row], 0.9 * first[row]);

    const Tensor settled = copy_of(q);
    descend_codes(w, q, gram, steps.values, steps.of_column, grid, 1);
    EXPECT_TRUE(same_bits(q, settled));
    for (const int64_t column : {0, 17, 119}) {
      for (const float by : {-1.0f, 1.0f}) {
        std::vector<double> other = in_f64(settled);
        for (int64_t row = 0; row < 35; ++row) {
          const float step = steps.values.data<float>()[row * 5 + column / 24];
          const float code = settled.data<float>()[row * 120 + column] / step;
          other[static_cast<size_t>(row * 120 + column)] = static_cast<double>(test::nearest_of(grid, code + by) * step);
        }
        const std::vector<double> losses = test::row_losses(w, other, gram);
        for (size_t row = 0; row < losses.size(); ++row) EXPECT_GE(losses[row], before[row] * (1 - 1e-6));
      }
    }
  }
}

TEST(DescendCodes, DoesNotDependOnHowRowsOrPassesAreSplitOverCalls) {
  const Tensor w = random_tensor({75, 300}, DType::kF32, 7), gram = gram_of(300, 8);
  const Steps steps = steps_for(w, 300, 7.0f, false);
  Tensor whole = rounded(w, steps, kInt4), parts = copy_of(whole);
  descend_codes(w, whole, gram, steps.values, steps.of_column, kInt4, 3);

  const test::ThreadsGuard guard(2);
  for (const auto& [begin, end] : {std::pair{0, 1}, {1, 40}, {40, 75}}) {
    Tensor part = parts.rows(begin, end);
    for (const int passes : {1, 0, 2})
      descend_codes(w.rows(begin, end), part, gram, steps.values.rows(begin, end), steps.of_column, kInt4, passes);
  }

  EXPECT_TRUE(same_bits(parts, whole));
}

TEST(DescendCodes, KeepsColumnsThatWereNeverUsed) {
  const int64_t columns = 130;
  const Tensor w = random_tensor({20, columns}, DType::kF32, 9);
  Tensor gram = gram_of(columns, 10);
  const int64_t dead[] = {0, 17, 115, 129};
  for (const int64_t c : dead)
    for (int64_t i = 0; i < columns; ++i) gram.data<float>()[c * columns + i] = gram.data<float>()[i * columns + c] = 0;
  const Steps steps = steps_for(w, 13, 7.0f, false);
  Tensor q = rounded(w, steps, kInt4);
  for (const int64_t c : dead)
    for (int64_t row = 0; row < 20; ++row) q.data<float>()[row * columns + c] = 3.25f;  // of no grid
  const std::vector<float> expected = test::descend_codes_by_fma(w, q, gram, steps.values, steps.of_column, kInt4, 2);

  descend_codes(w, q, gram, steps.values, steps.of_column, kInt4, 2);

  EXPECT_EQ(values_of(q), expected);
  for (const int64_t c : dead) EXPECT_EQ(q.data<float>()[19 * columns + c], 3.25f);
}

TEST(DescendCodes, LeavesValuesThatTheQuantizersGiveTheSameCodes) {
  const Tensor w = random_tensor({33, 256}, DType::kF32, 11), gram = gram_of(256, 12);
  const auto expect_same = [&](const Steps& steps, const FeedbackGrid& grid,
                               const std::function<void(const Tensor&, Tensor&)>& requantized) {
    Tensor q = rounded(w, steps, grid), back = Tensor::empty(w.shape(), DType::kF32);
    descend_codes(w, q, gram, steps.values, steps.of_column, grid, 3);
    requantized(q, back);
    EXPECT_EQ(values_of(back), values_of(q)) << static_cast<int>(grid.kind) << " " << grid.code_min;
  };

  Tensor codes = Tensor::empty(w.shape(), DType::kI8), bytes = Tensor::empty(w.shape(), DType::kF8E4M3);
  for (const FeedbackGrid& grid : {kInt4, kInt4Symmetric}) {
    const Steps steps = steps_for(w, 64, 8.0f, false);
    expect_same(steps, grid, [&](const Tensor& q, Tensor& back) {
      quantize_int4_groups(q, steps.values, 64, codes);
      for (int64_t i = 0; i < codes.numel(); ++i) ASSERT_GE(codes.data<int8_t>()[i], grid.code_min);
      dequantize_int4_groups(codes, steps.values, 64, back);
    });
  }
  const Steps int8 = steps_for(w, 256, 127.0f, false);
  expect_same(int8, kInt8, [&](const Tensor& q, Tensor& back) {
    quantize_int8_rows(q, int8.values, codes);
    dequantize_int8_rows(codes, int8.values, back);
  });
  const Steps fp8 = steps_for(w, 256, 448.0f, false);
  expect_same(fp8, kE4M3, [&](const Tensor& q, Tensor& back) {
    quantize_fp8_rows(q, fp8.values, bytes);
    dequantize_fp8_rows(bytes, fp8.values, back);
  });
  const float scale_2 = 4.0f / 2688;
  Tensor packed = Tensor::empty({33, 128}, DType::kU8), block_scales = Tensor::empty({33, 16}, DType::kF8E4M3);
  quantize_nvfp4(w, scale_2, packed, block_scales);
  Steps nvfp4 = steps_for(w, 16, 6.0f, false);
  for (int64_t i = 0; i < block_scales.numel(); ++i)
    nvfp4.values.data<float>()[i] = test::e4m3_value(block_scales.data<uint8_t>()[i]) * scale_2;
  expect_same(nvfp4, kE2M1, [&](const Tensor& q, Tensor& back) {
    quantize_nvfp4_static(q, block_scales, scale_2, packed);
    dequantize_nvfp4(packed, block_scales, scale_2, back);
  });
}

TEST(DescendCodes, RejectsStepsAndShapesThatCannotBe) {
  const Tensor w = Tensor::zeros({3, 4}, DType::kF32), gram = Tensor::zeros({4, 4}, DType::kF32),
               three = test::tensor_of({1, 1, 1}, {3, 1}), zero = test::tensor_of({1, 0, 1}, {3, 1});
  Tensor q = Tensor::zeros({3, 4}, DType::kF32);

  EXPECT_THROW(descend_codes(w, q, gram, zero, {0, 0, 0, 0}, kInt4, 1), Error);
  EXPECT_THROW(descend_codes(w, q, gram, three, {0, 0, 0}, kInt4, 1), Error);
  EXPECT_THROW(descend_codes(w, q, gram, three, {0, 0, 1, 0}, kInt4, 1), Error);
  EXPECT_THROW(descend_codes(w, q, gram, three, {0, 0, 0, 0}, FeedbackGrid{test::Kind::kInt4, -6}, 1), Error);
  EXPECT_THROW(descend_codes(w, q, three, three, {0, 0, 0, 0}, kInt4, 1), Error);
  EXPECT_THROW(descend_codes(w.rows(0, 2), q, gram, three, {0, 0, 0, 0}, kInt4, 1), Error);
}

// ---- steps --------------------------------------------------------------------------------------------------------------------------

using StepKind = StepGrid::Kind;
const StepGrid kAnyStep{}, kBF16Step{StepKind::kBF16}, kBlockScale{StepKind::kE4M3Times, 0.0015f};

/// Steps that are allowed and too large by up to a quarter, in turns.
Steps allowed_steps(const Tensor& w, int64_t group, float format_max, const StepGrid& allowed) {
  Steps steps = steps_for(w, group, format_max, false);
  for (int64_t i = 0; i < steps.values.numel(); ++i) {
    float& step = steps.values.data<float>()[i];
    step = test::nearest_step(allowed, step * (1.0f + 0.0625f * static_cast<float>(i % 5)));
  }
  return steps;
}

TEST(RefitSteps, IsAChainOfFusedMultiplyAddsForEachColumnAndSweep) {
  const std::pair<Shape, int64_t> cases[] = {{{1, 1}, 1},      {{3, 14}, 7},    {{33, 130}, 26},  {{16, 257}, 257},
                                             {{40, 256}, 128}, {{70, 208}, 16}, {{35, 240}, 120}, {{5, 224}, 112}};
  for (const auto& [shape, group] : cases)
    for (const FeedbackGrid& grid : {kInt4, kInt8, kE2M1, kE4M3})
      for (const StepGrid& allowed : {kAnyStep, kBF16Step, kBlockScale}) {
        const Tensor w = random_tensor(shape, DType::kF32, 13), gram = gram_of(shape[1], 14);
        const Steps steps = allowed_steps(w, group, test::largest_of(grid), allowed);
        const Tensor q = rounded(w, steps, grid);
        const std::vector<float> expected = test::refit_steps_by_fma(w, q, gram, group, allowed, 2, steps.values);
        for (const cpu::Isa isa : test::available_isas())
          for (const int threads : {1, 2}) {
            const test::IsaGuard isa_guard(isa);
            const test::ThreadsGuard threads_guard(threads);
            Tensor refitted = copy_of(steps.values);
            refit_steps(w, q, gram, group, allowed, 2, refitted);
            ASSERT_EQ(values_of(refitted), expected)
                << ptq::to_string(shape) << group << static_cast<int>(grid.kind) << static_cast<int>(allowed.kind) << static_cast<int>(isa);
          }
      }
}

/// What the steps stand for, of the codes behind q.
std::vector<double> values_under(const std::vector<double>& codes, const Tensor& steps, int64_t columns) {
  std::vector<double> values = codes;
  const int64_t group = columns / steps.dim(1);
  for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i)
    values[static_cast<size_t>(i)] *= static_cast<double>(steps.data<float>()[i / columns * steps.dim(1) + i % columns / group]);
  return values;
}
std::vector<double> codes_of(const Tensor& w, const Steps& steps, const FeedbackGrid& grid) {
  std::vector<double> codes;
  for (int64_t i = 0; i < w.numel(); ++i) {
    const int64_t across = steps.values.dim(1), of = steps.of_column[static_cast<size_t>(i % w.dim(1))];
    codes.push_back(
        static_cast<double>(test::nearest_of(grid, w.data<float>()[i] / steps.values.data<float>()[i / w.dim(1) * across + of])));
  }
  return codes;
}

TEST(RefitSteps, ComesToTheLeastSquaresOfF64) {
  for (const int64_t group : {16, 48, 144}) {
    const Tensor w = random_tensor({33, 144}, DType::kF32, 15), gram = gram_of(144, 16);
    const Steps steps = allowed_steps(w, group, 7.0f, kAnyStep);
    const Tensor q = rounded(w, steps, kInt4);
    const std::vector<double> expected = test::refit_steps_in_f64(w, codes_of(w, steps, kInt4), gram, group, 2, steps.values);
    Tensor refitted = copy_of(steps.values);

    refit_steps(w, q, gram, group, kAnyStep, 2, refitted);

    for (int64_t i = 0; i < refitted.numel(); ++i)
      ASSERT_NEAR(static_cast<double>(refitted.data<float>()[i]) / expected[static_cast<size_t>(i)], 1.0, 1e-5) << group << " " << i;
  }
}

TEST(RefitSteps, LowersTheLossOfEveryRowWithStepsThatAreAllowed) {
  const Tensor w = random_tensor({40, 256}, DType::kF32, 17), gram = gram_of(256, 18);
  for (const StepGrid& allowed : {kAnyStep, kBF16Step, kBlockScale}) {
    const FeedbackGrid grid = allowed.kind == StepKind::kE4M3Times ? kE2M1 : kInt4;
    const Steps steps = allowed_steps(w, 16, test::largest_of(grid), allowed);
    const Tensor q = rounded(w, steps, grid);
    const std::vector<double> codes = codes_of(w, steps, grid), first = test::row_losses(w, in_f64(q), gram);
    std::vector<double> before = first;
    Tensor refitted = copy_of(steps.values);
    for (int sweep = 0; sweep < 3; ++sweep) {
      // Codes are found again from what they stand for under the steps so far.
      Tensor now = Tensor::empty(w.shape(), DType::kF32);
      const std::vector<double> values = values_under(codes, refitted, 256);
      for (int64_t i = 0; i < now.numel(); ++i) now.data<float>()[i] = static_cast<float>(values[static_cast<size_t>(i)]);
      refit_steps(w, now, gram, 16, allowed, 1, refitted);
      const std::vector<double> after = test::row_losses(w, values_under(codes, refitted, 256), gram);
      for (size_t row = 0; row < after.size(); ++row) ASSERT_LE(after[row], before[row] * (1 + 1e-6)) << row << " " << sweep;
      before = after;
    }
    for (size_t row = 0; row < first.size(); ++row) EXPECT_LT(before[row], first[row]) << static_cast<int>(allowed.kind);
    EXPECT_LT(std::accumulate(before.begin(), before.end(), 0.0), 0.9 * std::accumulate(first.begin(), first.end(), 0.0));
    for (const float step : values_of(refitted)) EXPECT_EQ(step, test::nearest_step(allowed, step));
  }
}

TEST(RefitSteps, DoesNotDependOnHowRowsAreSplitOverCalls) {
  const Tensor w = random_tensor({75, 288}, DType::kF32, 19), gram = gram_of(288, 20);
  const Steps steps = allowed_steps(w, 32, 7.0f, kBF16Step);
  const Tensor q = rounded(w, steps, kInt4);
  Tensor whole = copy_of(steps.values), parts = copy_of(steps.values);
  refit_steps(w, q, gram, 32, kBF16Step, 2, whole);

  const test::ThreadsGuard guard(2);
  for (const auto& [begin, end] : {std::pair{0, 1}, {1, 40}, {40, 75}}) {
    Tensor part = parts.rows(begin, end);
    refit_steps(w.rows(begin, end), q.rows(begin, end), gram, 32, kBF16Step, 2, part);
  }

  EXPECT_TRUE(same_bits(parts, whole));
}

TEST(RefitSteps, KeepsStepsThatNothingSpeaksAbout) {
  // Group 0 has codes of 0 only, group 1 columns that were never used, group 2 weights of the other sign than their codes.
  const int64_t columns = 48;
  Tensor w = random_tensor({4, columns}, DType::kF32, 21), gram = gram_of(columns, 22);
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t c = 16; c < 32; ++c) gram.data<float>()[c * columns + i] = gram.data<float>()[i * columns + c] = 0;
  Tensor q = copy_of(w), steps = Tensor::empty({4, 3}, DType::kF32);
  std::fill_n(steps.data<float>(), 12, 0.5f);
  for (int64_t i = 0; i < w.numel(); ++i) {
    if (i % columns < 16) w.data<float>()[i] = q.data<float>()[i] = 0;
    if (i % columns >= 16) q.data<float>()[i] = (i % columns < 32 ? 0.5f : -0.5f) * std::nearbyint(4 * w.data<float>()[i]);
  }
  for (const StepGrid& allowed : {kAnyStep, kBF16Step, StepGrid{StepKind::kE4M3Times, 0.5f}}) {
    Tensor refitted = copy_of(steps);
    refit_steps(w, q, gram, 16, allowed, 2, refitted);
    EXPECT_TRUE(same_bits(refitted, steps)) << static_cast<int>(allowed.kind);
  }
}

TEST(RefitSteps, RoundsToWhatIsStored) {
  // One column, one code of 2: s' is half of the weight.
  const auto refitted = [](float weight, float before, const StepGrid& allowed) {
    const Tensor w = test::tensor_of({weight}, {1, 1}), q = test::tensor_of({2 * before}, {1, 1}), gram = test::tensor_of({3}, {1, 1});
    Tensor steps = test::tensor_of({before}, {1, 1});
    refit_steps(w, q, gram, 1, allowed, 1, steps);
    return steps.data<float>()[0];
  };
  const auto e4m3 = [](float factor) { return StepGrid{StepKind::kE4M3Times, factor}; };
  EXPECT_EQ(refitted(2.34375f, 2.0f, kAnyStep), 1.171875f);
  EXPECT_EQ(refitted(2 * (1 + 0x1p-8f), 2.0f, kBF16Step), 1.0f);                    // a tie, to the even one
  EXPECT_EQ(refitted(2 * (1 + 3 * 0x1p-8f), 2.0f, kBF16Step), 1.0f + 2 * 0x1p-7f);  // and up
  EXPECT_EQ(refitted(2 * 1.0625f, 2.0f, e4m3(1.0f)), 1.0f);
  EXPECT_EQ(refitted(2 * 0.3f, 0.5f, e4m3(0.1f)), 3.0f * 0.1f);
  EXPECT_EQ(refitted(2 * 1000.0f, 64.0f, e4m3(1.0f)), 448.0f);
  EXPECT_EQ(refitted(2 * 0x1p-12f, 0x1p-6f, e4m3(1.0f)), 0x1p-9f);
  // The nearest one that is allowed loses more than the step there is.
  EXPECT_EQ(refitted(2 * 1.05f, 1.06f, e4m3(1.0f)), 1.06f);
  EXPECT_EQ(refitted(2 * std::numeric_limits<float>::max(), 1.0f, kBF16Step), 1.0f);
}

TEST(RefitSteps, RejectsStepsAndShapesThatCannotBe) {
  const Tensor w = Tensor::zeros({3, 4}, DType::kF32), gram = Tensor::zeros({4, 4}, DType::kF32);
  Tensor three = test::tensor_of({1, 1, 1}, {3, 1}), zero = test::tensor_of({1, 0, 1}, {3, 1}),
         infinite = test::tensor_of({1, std::numeric_limits<float>::infinity(), 1}, {3, 1});

  EXPECT_NO_THROW(refit_steps(w, w, gram, 4, kAnyStep, 1, three));
  EXPECT_THROW(refit_steps(w, w, gram, 4, kAnyStep, 1, zero), Error);
  EXPECT_THROW(refit_steps(w, w, gram, 4, kAnyStep, 1, infinite), Error);
  EXPECT_THROW(refit_steps(w, w, gram, 3, kAnyStep, 1, three), Error);
  EXPECT_THROW(refit_steps(w, w, gram, 2, kAnyStep, 1, three), Error);
  EXPECT_THROW(refit_steps(w, w, three, 4, kAnyStep, 1, three), Error);
  EXPECT_THROW(refit_steps(w, w.rows(0, 2), gram, 4, kAnyStep, 1, three), Error);
  EXPECT_THROW(refit_steps(w, w, gram, 4, StepGrid{StepKind::kE4M3Times, 0.0f}, 1, three), Error);
}

}  // namespace
}  // namespace ptq::kernels
