// Scales of least error, against a search in f64 over the same candidates, on every instruction set.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "tests/support/reference_formats.h"
#include "tests/support/reference_ops.h"
#include "tests/support/reference_search.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::same_bits, test::values_of;
using Kind = FeedbackGrid::Kind;

const std::vector<float> kRatios = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f, 0.6f, 0.5f, 0.4f};

Tensor gram_of(int64_t columns, uint64_t seed) {
  Tensor x = random_tensor({columns / 2 + 5, columns}, DType::kF32, seed), gram = Tensor::zeros({columns, columns}, DType::kF32);
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t c = 1; c < columns; ++c) x.data<float>()[t * columns + c] += 0.7f * x.data<float>()[t * columns + c - 1];
  gram_add(x, 0, columns, gram);
  gram_complete(gram);
  return gram;
}

float amax_of(const float* w, int64_t count) {
  float amax = 0;
  for (int64_t i = 0; i < count; ++i) amax = std::max(amax, std::fabs(w[i]));
  return amax;
}

/// The chosen scale is a candidate, and in f64 no other is better by more than f32 sums may hide.
void expect_least(const std::vector<float>& candidates, const std::vector<double>& losses, float chosen) {
  const auto at = std::find(candidates.begin(), candidates.end(), chosen);
  ASSERT_NE(at, candidates.end()) << chosen;
  const double least = *std::min_element(losses.begin(), losses.end());
  ASSERT_LE(losses[static_cast<size_t>(at - candidates.begin())], least * (1 + 1e-5) + 1e-30);
}

struct Case {
  int64_t rows, columns, group;
  FeedbackGrid grid;
  float format_max;
};
/// Ragged ones, and one whose ratios do not all fit the caches at once.
const std::vector<Case> kCases = {{3, 1030, 1030, {Kind::kInt8, -128}, 127.0f}, {1, 1, 1, {Kind::kInt4, -8}, 7.0f},
                                  {5, 39, 13, {Kind::kInt4, -7}, 7.0f},         {33, 256, 128, {Kind::kInt4, -8}, 7.0f},
                                  {35, 300, 300, {Kind::kInt8, -128}, 127.0f},  {18, 523, 523, {Kind::kE4M3, 0}, 448.0f},
                                  {70, 48, 16, {Kind::kE2M1, 0}, 6.0f}};

TEST(SearchGroupScales, ChoosesTheCandidateOfLeastLoss) {
  for (const Case& c : kCases) {
    Tensor w = random_tensor({c.rows, c.columns}, DType::kF32, 1);
    if (c.columns > c.group) std::fill_n(w.data<float>() + c.group, c.group, 0.0f);
    const Tensor gram = gram_of(c.columns, 2);
    const int64_t groups = c.columns / c.group;
    Tensor first;
    for (const cpu::Isa isa : test::available_isas())
      for (const int threads : {1, 2}) {
        const test::IsaGuard isa_guard(isa);
        const test::ThreadsGuard threads_guard(threads);
        Tensor scales = Tensor::empty({c.rows, groups}, DType::kF32);
        search_group_scales(w, gram, c.group, c.grid, c.format_max, kRatios, scales);
        if (!first.defined()) first = scales;
        ASSERT_TRUE(same_bits(scales, first)) << static_cast<int>(isa) << threads << " " << c.columns;
      }
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t g = 0; g < groups; ++g) {
        const float* const of_row = w.data<float>() + row * c.columns;
        const float amax = amax_of(of_row + g * c.group, c.group);
        std::vector<float> candidates;
        std::vector<double> losses;
        for (const float ratio : kRatios) {
          candidates.push_back(amax == 0 ? 1.0f : ratio * amax / c.format_max);
          losses.push_back(test::rounding_loss(of_row, gram, g * c.group, c.group, candidates.back(), c.grid));
        }
        expect_least(candidates, losses, first.data<float>()[row * groups + g]);
      }
  }
}

TEST(SearchGroupScales, TakesTheFirstRatioWhereNothingIsLost) {
  const Tensor w = random_tensor({3, 32}, DType::kF32, 3);
  Tensor scales = Tensor::empty({3, 2}, DType::kF32);

  search_group_scales(w, Tensor::zeros({32, 32}, DType::kF32), 16, {}, 7.0f, {0.9f, 1.0f, 0.5f}, scales);

  for (int64_t row = 0; row < 3; ++row)
    for (int64_t g = 0; g < 2; ++g)
      EXPECT_EQ(scales.data<float>()[row * 2 + g], 0.9f * amax_of(w.data<float>() + row * 32 + g * 16, 16) / 7.0f);
}

TEST(SearchGroupScales, DoesNotDependOnHowRowsAreSplitOverCalls) {
  const Tensor w = random_tensor({75, 256}, DType::kF32, 4), gram = gram_of(256, 5);
  Tensor whole = Tensor::empty({75, 2}, DType::kF32), parts = Tensor::empty({75, 2}, DType::kF32);
  search_group_scales(w, gram, 128, {}, 7.0f, kRatios, whole);

  for (const auto& [begin, end] : {std::pair{0, 1}, {1, 40}, {40, 75}}) {
    Tensor part = parts.rows(begin, end);
    search_group_scales(w.rows(begin, end), gram, 128, {}, 7.0f, kRatios, part);
  }

  EXPECT_TRUE(same_bits(parts, whole));
}

TEST(SearchNvfp4Scales, ChoosesTheCodeOfLeastLoss) {
  const std::vector<float> ratios = {1.0f, 0.9f, 0.8f, 0.7f, 0.6f, 0.5f, 1.1f, 1.25f, 1.5f};
  for (const Shape& shape : {Shape{1, 16}, Shape{33, 144}, Shape{50, 320}}) {
    Tensor w = random_tensor(shape, DType::kF32, 6);
    std::fill_n(w.data<float>(), 16, 0.0f);
    const Tensor gram = gram_of(shape[1], 7);
    const float scale_2 = 3.0f / 2688;
    const int64_t blocks = shape[1] / 16;
    Tensor first;
    for (const cpu::Isa isa : test::available_isas())
      for (const int threads : {1, 2}) {
        const test::IsaGuard isa_guard(isa);
        const test::ThreadsGuard threads_guard(threads);
        Tensor codes = Tensor::empty({shape[0], blocks}, DType::kF8E4M3);
        search_nvfp4_scales(w, gram, scale_2, ratios, codes);
        if (!first.defined()) first = codes;
        ASSERT_TRUE(same_bits(codes, first)) << static_cast<int>(isa) << threads;
      }
    for (int64_t row = 0; row < shape[0]; ++row)
      for (int64_t b = 0; b < blocks; ++b) {
        const float* const of_row = w.data<float>() + row * shape[1];
        const float amax = amax_of(of_row + b * 16, 16);
        std::vector<float> candidates;
        std::vector<double> losses;
        for (const float ratio : ratios) {
          const float wanted = std::clamp(ratio * amax / (6.0f * scale_2), 0x1p-9f, 448.0f);
          candidates.push_back(amax == 0 ? 1.0f : test::e4m3_value(test::nearest_e4m3(wanted)));
          losses.push_back(test::rounding_loss(of_row, gram, b * 16, 16, candidates.back() * scale_2, {Kind::kE2M1}));
        }
        expect_least(candidates, losses, test::e4m3_value(first.data<uint8_t>()[row * blocks + b]));
      }
    EXPECT_EQ(first.data<uint8_t>()[0], 0x38);  // 1.0
  }
}

TEST(SearchScales, RejectShapesAndRatiosThatCannotBe) {
  const Tensor w = Tensor::zeros({3, 32}, DType::kF32), gram = Tensor::zeros({32, 32}, DType::kF32);
  Tensor two = Tensor::empty({3, 2}, DType::kF32), codes = Tensor::empty({3, 2}, DType::kU8);

  EXPECT_THROW(search_group_scales(w, gram, 15, {}, 7.0f, kRatios, two), Error);
  EXPECT_THROW(search_group_scales(w, gram, 32, {}, 7.0f, kRatios, two), Error);
  EXPECT_THROW(search_group_scales(w, gram, 16, {}, 7.0f, {}, two), Error);
  EXPECT_THROW(search_nvfp4_scales(w, gram, 0.0f, kRatios, codes), Error);
  EXPECT_THROW(search_nvfp4_scales(w, w, 1.0f, kRatios, codes), Error);
}

}  // namespace
}  // namespace ptq::kernels
