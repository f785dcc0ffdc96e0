// Error feedback: its factor against f64, the adjusted weights against one chain for each element and against GPTQ as published.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <utility>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "tests/support/reference_search.h"
#include "tests/unit/kernels/isa_guard.h"
#include "tests/unit/kernels/search_inputs.h"

namespace ptq::kernels {
namespace {

using test::copy_of, test::gram_of, test::in_f64, test::kE2M1, test::kE4M3, test::kInt4, test::kInt4Symmetric, test::kInt8, test::Kind,
    test::largest_of, test::random_tensor, test::same_bits, test::Steps, test::steps_for, test::values_of;

TEST(FeedbackFactor, IsTheUnitUpperFactorOfTheDampedGram) {
  for (const int64_t columns : {1, 5, 64, 65, 130, 256, 257, 523}) {
    const Tensor gram = gram_of(columns, 1);
    const std::vector<double> expected = test::feedback_in_f64(in_f64(gram), 0.01f);
    Tensor factor = copy_of(gram);

    feedback_factor(factor, 0.01f);

    double worst = 0;
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const float value = factor.data<float>()[i * columns + j];
        ASSERT_TRUE(j > i || value == 0.0f) << i << " " << j;
        worst = std::max(worst, std::fabs(static_cast<double>(value) - expected[static_cast<size_t>(i * columns + j)]) * (j > i));
      }
    EXPECT_LT(worst, 2e-5) << columns;
  }
}

TEST(FeedbackFactor, HasTheSameBitsOnAnyThreadsAndInstructionSet) {
  const Tensor gram = gram_of(601, 2);
  Tensor expected = copy_of(gram);
  feedback_factor(expected, 0.01f);
  for (const cpu::Isa isa : test::available_isas())
    for (const int threads : {1, 2, 5}) {
      const test::IsaGuard isa_guard(isa);
      const test::ThreadsGuard threads_guard(threads);
      Tensor factor = copy_of(gram);
      feedback_factor(factor, 0.01f);
      EXPECT_TRUE(same_bits(factor, expected)) << static_cast<int>(isa) << " " << threads;
    }
}

TEST(FeedbackFactor, LeavesColumnsOutThatWereNeverUsed) {
  const int64_t columns = 70;
  Tensor gram = gram_of(columns, 3);
  for (const int64_t dead : {0, 17, 69})
    for (int64_t i = 0; i < columns; ++i) gram.data<float>()[dead * columns + i] = gram.data<float>()[i * columns + dead] = 0;
  const std::vector<double> expected = test::feedback_in_f64(in_f64(gram), 0.1);

  feedback_factor(gram, 0.1f);

  for (int64_t i = 0; i < columns; ++i) {
    EXPECT_EQ(gram.data<float>()[17 * columns + i], 0.0f);
    EXPECT_EQ(gram.data<float>()[i * columns + 17], 0.0f);
    EXPECT_EQ(gram.data<float>()[i * columns + 69], 0.0f);
    for (int64_t j = i + 1; j < columns; ++j)
      ASSERT_NEAR(static_cast<double>(gram.data<float>()[i * columns + j]), expected[static_cast<size_t>(i * columns + j)], 1e-5);
  }
}

TEST(FeedbackFactor, OfAnAllZeroOrRankOneGramIsFinite) {
  for (const float damping : {0.0f, 0.01f})
    for (const float value : {0.0f, 1.0f, 3.14159f}) {
      Tensor gram = Tensor::empty({130, 130}, DType::kF32);
      std::fill_n(gram.data<float>(), gram.numel(), value);

      feedback_factor(gram, damping);

      for (const float element : values_of(gram)) {
        ASSERT_TRUE(std::isfinite(element));
        ASSERT_TRUE(value != 0 || element == 0);
      }
    }
}

TEST(FeedbackFactor, RejectsWhatIsNotSquare) {
  Tensor wide = Tensor::zeros({4, 5}, DType::kF32), square = Tensor::zeros({4, 4}, DType::kF32);

  EXPECT_THROW(feedback_factor(wide, 0.01f), Error);
  EXPECT_THROW(feedback_factor(square, -1.0f), Error);
}

Tensor factor_of(int64_t columns, uint64_t seed) {
  Tensor factor = gram_of(columns, seed);
  feedback_factor(factor, 0.01f);
  return factor;
}

TEST(ErrorFeedback, IsOneChainOfFusedMultiplyAddsForEachWeight) {
  const Shape shapes[] = {{1, 1}, {3, 7}, {33, 130}, {16, 257}, {140, 390}};
  for (const Shape& shape : shapes)
    for (const FeedbackGrid& grid : {kInt4, kInt4Symmetric, kInt8, kE2M1, kE4M3}) {
      const Tensor before = random_tensor(shape, DType::kF32, 4), factor = factor_of(shape[1], 5);
      const Steps steps = steps_for(before, 16, largest_of(grid), true);
      const std::vector<float> expected = test::error_feedback_by_fma(before, factor, steps.values, steps.of_column, grid);
      for (const cpu::Isa isa : test::available_isas())
        for (const int threads : {1, 2}) {
          const test::IsaGuard isa_guard(isa);
          const test::ThreadsGuard threads_guard(threads);
          Tensor w = copy_of(before);
          error_feedback(w, factor, steps.values, steps.of_column, grid);
          ASSERT_EQ(values_of(w), expected) << ptq::to_string(shape) << static_cast<int>(grid.kind) << static_cast<int>(isa) << threads;
        }
    }
}

TEST(ErrorFeedback, DoesNotDependOnHowRowsAreSplitOverCalls) {
  const Tensor before = random_tensor({75, 300}, DType::kF32, 6), factor = factor_of(300, 7);
  const Steps steps = steps_for(before, 300, 7.0f, false);
  Tensor whole = copy_of(before), parts = copy_of(before);
  error_feedback(whole, factor, steps.values, steps.of_column, kInt4);

  const test::ThreadsGuard guard(2);
  for (const auto& [begin, end] : {std::pair{0, 1}, {1, 40}, {40, 75}}) {
    Tensor part = parts.rows(begin, end);
    error_feedback(part, factor, steps.values.rows(begin, end), steps.of_column, kInt4);
  }

  EXPECT_TRUE(same_bits(parts, whole));
}

/// Adjusts w, quantizes what comes out, and follows the chains again with what those codes stand for.
void expect_codes_of_quantizer(const Tensor& before, const Steps& steps, const FeedbackGrid& grid,
                               const std::function<Tensor(const Tensor&)>& quantized) {
  const int64_t rows = before.dim(0), columns = before.dim(1);
  const Tensor factor = factor_of(columns, 8);
  Tensor w = copy_of(before);
  error_feedback(w, factor, steps.values, steps.of_column, grid);
  const Tensor back = quantized(w);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < columns; ++k) {
      const auto at = [&](const Tensor& tensor, int64_t c) { return tensor.data<float>()[row * columns + c]; };
      float a = at(before, k);
      for (int64_t j = 0; j < k; ++j) a = std::fma(factor.data<float>()[j * columns + k], at(before, j) - at(back, j), a);
      ASSERT_EQ(at(w, k), a) << row << " " << k;
    }
}

TEST(ErrorFeedback, LeavesWeightsThatTheQuantizersGiveTheSameCodes) {
  const Tensor before = random_tensor({33, 256}, DType::kF32, 9);
  const Shape shape = before.shape();

  const Steps int4 = steps_for(before, 64, 7.0f, false);
  expect_codes_of_quantizer(before, int4, kInt4, [&](const Tensor& w) {
    Tensor codes = Tensor::empty(shape, DType::kI8), back = Tensor::empty(shape, DType::kF32);
    quantize_int4_groups(w, int4.values, 64, codes);
    dequantize_int4_groups(codes, int4.values, 64, back);
    return back;
  });
  const Steps int8 = steps_for(before, 256, 127.0f, false);
  expect_codes_of_quantizer(before, int8, kInt8, [&](const Tensor& w) {
    Tensor codes = Tensor::empty(shape, DType::kI8), back = Tensor::empty(shape, DType::kF32);
    quantize_int8_rows(w, int8.values, codes);
    dequantize_int8_rows(codes, int8.values, back);
    return back;
  });
  const Steps fp8 = steps_for(before, 256, 448.0f, false);
  expect_codes_of_quantizer(before, fp8, kE4M3, [&](const Tensor& w) {
    Tensor codes = Tensor::empty(shape, DType::kF8E4M3), back = Tensor::empty(shape, DType::kF32);
    quantize_fp8_rows(w, fp8.values, codes);
    dequantize_fp8_rows(codes, fp8.values, back);
    return back;
  });
  const float scale_2 = 4.0f / 2688;
  Tensor packed = Tensor::empty({33, 128}, DType::kU8), block_scales = Tensor::empty({33, 16}, DType::kF8E4M3);
  quantize_nvfp4(before, scale_2, packed, block_scales);
  Steps nvfp4 = steps_for(before, 16, 6.0f, false);
  for (int64_t i = 0; i < block_scales.numel(); ++i)
    nvfp4.values.data<float>()[i] = test::e4m3_value(block_scales.data<uint8_t>()[i]) * scale_2;
  expect_codes_of_quantizer(before, nvfp4, kE2M1, [&](const Tensor& w) {
    Tensor back = Tensor::empty(shape, DType::kF32);
    quantize_nvfp4_static(w, block_scales, scale_2, packed);
    dequantize_nvfp4(packed, block_scales, scale_2, back);
    return back;
  });
}

TEST(ErrorFeedback, GivesTheCodesOfGptq) {
  const int64_t rows = 64, columns = 150;
  const Tensor before = random_tensor({rows, columns}, DType::kF32, 10), gram = gram_of(columns, 11);
  const Steps steps = steps_for(before, columns, 7.0f, false);
  std::vector<double> damped = in_f64(gram);
  double mean = 0;
  for (int64_t c = 0; c < columns; ++c) mean += damped[static_cast<size_t>(c * columns + c)] / static_cast<double>(columns);
  for (int64_t c = 0; c < columns; ++c) damped[static_cast<size_t>(c * columns + c)] += 0.01 * mean;
  const std::vector<float> expected = test::gptq_in_f64(before, damped, values_of(steps.values), kInt4);
  Tensor w = copy_of(before), factor = copy_of(gram), codes = Tensor::empty({rows, columns}, DType::kI8);

  feedback_factor(factor, 0.01f);
  error_feedback(w, factor, steps.values, steps.of_column, kInt4);
  quantize_int4_groups(w, steps.values, columns, codes);

  // One weight at a tie that rounding decides otherwise changes the rest of its row.
  int64_t different_rows = 0;
  for (int64_t row = 0; row < rows; ++row) {
    bool is_different = false;
    for (int64_t c = 0; c < columns; ++c)
      is_different |= static_cast<float>(codes.data<int8_t>()[row * columns + c]) * steps.values.data<float>()[row] !=
                      expected[static_cast<size_t>(row * columns + c)];
    different_rows += is_different;
  }
  EXPECT_LE(different_rows, 2);
}

TEST(ErrorFeedback, RejectsStepsAndShapesThatCannotBe) {
  Tensor w = Tensor::zeros({3, 4}, DType::kF32);
  const Tensor factor = Tensor::zeros({4, 4}, DType::kF32), three = test::tensor_of({1, 1, 1}, {3, 1}),
               zero = test::tensor_of({1, 0, 1}, {3, 1});

  EXPECT_THROW(error_feedback(w, factor, zero, {0, 0, 0, 0}, kInt4), Error);
  EXPECT_THROW(error_feedback(w, factor, three, {0, 0, 0}, kInt4), Error);
  EXPECT_THROW(error_feedback(w, factor, three, {0, 0, 1, 0}, kInt4), Error);
  EXPECT_THROW(error_feedback(w, factor, three, {0, 0, 0, 0}, FeedbackGrid{Kind::kInt4, -6}), Error);
  EXPECT_THROW(error_feedback(w, three, three, {0, 0, 0, 0}, kInt4), Error);
}

}  // namespace
}  // namespace ptq::kernels
