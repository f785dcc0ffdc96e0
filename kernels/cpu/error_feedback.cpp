// Error feedback: a task owns some rows, a row in each lane, and walks their columns in blocks. The errors of all columns before a block
// reach it as a product; within the block one column follows the other.

#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_search_ops.h"
#include "kernels/cpu/lane_products.h"
#include "kernels/cpu/lane_rows.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/scratch.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kBlock = 112;   // columns: whole tiles of the widest kernel; times kPanelDepth, a part of L2
constexpr int64_t kStretch = 16;  // columns within a block that really go one after the other
constexpr int64_t kMaxErrorBytes = int64_t{8} << 20;

struct Feedback {
  const PanelKernels& kernels;
  const float* m;  // [columns][columns]
  int64_t columns;
  const int32_t* step_of;
  Rounding rounding;
};

/// Columns [k0, k0 + count) of one group of rows, given what the columns before add.
void follow_block(const Feedback& feedback, int64_t k0, int64_t count, const float* steps, float* errors, float* adjusted) {
  const int64_t lanes = feedback.kernels.width;
  for (int64_t k = 0; k < count; k += kStretch) {
    const int64_t stretch = std::min(kStretch, count - k), rest = k + stretch;
    const float* const m = feedback.m + (k0 + k) * feedback.columns + k0 + k;
    row_kernels().feed_back(adjusted + k * lanes, errors + (k0 + k) * lanes, lanes, stretch, m, feedback.columns, steps,
                            feedback.step_of + k0 + k, feedback.rounding);
    add_products(feedback.kernels, m + stretch, feedback.columns, errors + (k0 + k) * lanes, stretch, count - rest,
                 adjusted + rest * lanes);
  }
}

/// Rows of w in groups of as many as there are lanes.
void follow_rows(const Feedback& feedback, float* w, const float* steps, int64_t step_columns, int64_t rows) {
  const int64_t lanes = feedback.kernels.width, columns = feedback.columns, groups = (rows + lanes - 1) / lanes;
  thread_local Scratch scratch;
  float* const errors = scratch.floats(groups * lanes * (columns + step_columns + kBlock) + kPanelDepth * kBlock);
  float* const group_steps = errors + groups * columns * lanes;
  float* const adjusted = group_steps + groups * step_columns * lanes;
  float* const packed = adjusted + groups * kBlock * lanes;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t count = std::min(lanes, rows - g * lanes);
    rows_to_lanes(w + g * lanes * columns, columns, count, columns, lanes, 0.0f, errors + g * columns * lanes);
    float* const to = group_steps + g * step_columns * lanes;
    rows_to_lanes(steps + g * lanes * step_columns, step_columns, count, step_columns, lanes, 1.0f, to);
    require(std::all_of(to, to + step_columns * lanes, [](float step) { return step > 0; }), "error_feedback: a step is not positive");
  }
  for (int64_t k0 = 0; k0 < columns; k0 += kBlock) {
    const int64_t count = std::min(kBlock, columns - k0);
    for (int64_t g = 0; g < groups; ++g) std::copy_n(errors + (g * columns + k0) * lanes, count * lanes, adjusted + g * kBlock * lanes);
    for (int64_t j0 = 0; j0 < k0; j0 += kPanelDepth) {
      const int64_t depth = std::min(kPanelDepth, k0 - j0);
      const float* const m = feedback.m + j0 * columns + k0;
      for (int64_t j = 0; j < depth; ++j) std::copy_n(m + j * columns, count, packed + j * kBlock);
      for (int64_t g = 0; g < groups; ++g) {
        // The rows of M that come next are far apart: nothing else would have them ready.
        for (int64_t j = g * depth / groups; j < (g + 1) * depth / groups && j0 + kPanelDepth + j < k0; ++j)
          for (int64_t c = 0; c < count; c += 16) __builtin_prefetch(m + (kPanelDepth + j) * columns + c, 0, 2);
        add_products(feedback.kernels, packed, kBlock, errors + (g * columns + j0) * lanes, depth, count, adjusted + g * kBlock * lanes);
      }
    }
    for (int64_t g = 0; g < groups; ++g) {
      float* const of_group = adjusted + g * kBlock * lanes;
      follow_block(feedback, k0, count, group_steps + g * step_columns * lanes, errors + g * columns * lanes, of_group);
      lanes_to_rows(of_group, lanes, std::min(lanes, rows - g * lanes), count, w + g * lanes * columns + k0, columns);
    }
  }
}

}  // namespace

Rounding rounding_of(const FeedbackGrid& grid) {
  using Kind = FeedbackGrid::Kind;
  switch (grid.kind) {
    case Kind::kInt4:
      require(grid.code_min == -8 || grid.code_min == -7, "grid of INT4: the least code is neither -8 nor -7");
      return {Rounding::Kind::kInteger, static_cast<float>(grid.code_min), 7.0f};
    case Kind::kInt8:
      require(grid.code_min == -128 || grid.code_min == -127, "grid of INT8: the least code is neither -128 nor -127");
      return {Rounding::Kind::kInteger, static_cast<float>(grid.code_min), 127.0f};
    case Kind::kE2M1:
      return {Rounding::Kind::kE2M1, -6.0f, 6.0f};
    case Kind::kE4M3:
      return {Rounding::Kind::kE4M3, -448.0f, 448.0f};
  }
  throw bug("a grid of no format");
}

void error_feedback(Tensor& w, const Tensor& feedback, const Tensor& steps, const std::vector<int32_t>& step_of, const FeedbackGrid& grid) {
  require(w.rank() == 2 && steps.rank() == 2 && steps.dim(0) == w.dim(0), "error_feedback: w [O, C] and steps [O, S] do not fit");
  const int64_t rows = w.dim(0), columns = w.dim(1), step_columns = steps.dim(1);
  require(feedback.rank() == 2 && feedback.dim(0) == columns && feedback.dim(1) == columns, "error_feedback: feedback is not [C, C]");
  require(static_cast<int64_t>(step_of.size()) == columns &&
              std::all_of(step_of.begin(), step_of.end(), [&](int32_t s) { return s >= 0 && s < step_columns; }),
          "error_feedback: step_of does not name a column of steps for each column");
  const Feedback by{panel_kernels(), feedback.data<float>(), columns, step_of.data(), rounding_of(grid)};
  float* const values = w.data<float>();
  const float* const all_steps = steps.data<float>();

  // Groups of a task share the packing of M. Their errors should stay in a cache, and every thread should get something.
  const int64_t lanes = by.kernels.width, group_bytes = std::max<int64_t>(1, columns * lanes * 4);
  const int64_t groups = std::clamp<int64_t>(std::min(rows / (lanes * 2 * num_threads()), kMaxErrorBytes / group_bytes), 1, 8);
  parallel_ranges(rows, groups * lanes, [&](int64_t begin, int64_t end) {
    follow_rows(by, values + begin * columns, all_steps + begin * step_columns, step_columns, end - begin);
  });
}

}  // namespace ptq::kernels::cpu
