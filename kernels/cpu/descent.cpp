// Descent on the loss (w - q)·G·(w - q)ᵀ over codes or steps: a task owns some rows, a row in each lane, and walks their columns in blocks.
// What the errors of all columns add to a block, as they are by then, reaches it as a product; within the block one follows the other.

#include <algorithm>
#include <cmath>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_search_ops.h"
#include "kernels/cpu/lane_products.h"
#include "kernels/cpu/lane_rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/format/e4m3.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kBlock = 112;   // columns, as in error_feedback.cpp
constexpr int64_t kStretch = 16;  // columns within a block whose codes really follow one the other
constexpr int64_t kMaxLaneBytes = int64_t{8} << 20;

struct Gram {
  const PanelKernels& kernels;
  const float* values;  // [columns][columns]
  int64_t columns;
  const float* at(int64_t row, int64_t column) const { return values + row * columns + column; }
};

/// Columns [begin, end).
struct Range {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

/// sums [groups][kBlock][lanes] = Σ_i x_i·G[i, k] for the columns k of a block: a chain over the columns i of `range` from first_of(k) to
/// the last, then from the first one to where first_of or else the block begins. x [groups][columns][lanes]; first_of does not fall.
/// `packed` has room for kPanelDepth·kBlock.
template <class FirstOf>
void sum_products(const Gram& gram, const float* x, int64_t groups, Range range, Range block, FirstOf first_of, float* packed,
                  float* sums) {
  const int64_t lanes = gram.kernels.width, count = block.count();
  const int64_t begin = std::min(first_of(block.begin), block.begin), all_in = first_of(block.end - 1);
  for (int64_t g = 0; g < groups; ++g) std::fill_n(sums + g * kBlock * lanes, count * lanes, 0.0f);
  for (int64_t done = 0, depth = 0; done < range.count(); done += depth) {
    const bool is_wrapped = begin + done >= range.end;
    const int64_t i0 = begin + done - (is_wrapped ? range.count() : 0);
    depth = std::min(kPanelDepth, (is_wrapped ? begin : range.end) - i0);
    for (int64_t i = i0; i < i0 + depth; ++i) {
      float* const to = packed + (i - i0) * kBlock;
      std::copy_n(gram.at(i, block.begin), count, to);
      for (int64_t k = 0; k < count && !is_wrapped && i < all_in; ++k)
        if (i < first_of(block.begin + k)) to[k] = 0.0f;
    }
    for (int64_t g = 0; g < groups; ++g) {
      // The rows of G that come next are far apart: nothing else would have them ready.
      const int64_t next = i0 + depth < range.end ? i0 + depth : range.begin;
      for (int64_t i = next + g * depth / groups; i < std::min(next + (g + 1) * depth / groups, range.end); ++i)
        for (int64_t c = 0; c < count; c += 16) __builtin_prefetch(gram.at(i, block.begin + c), 0, 2);
      add_products(gram.kernels, packed, kBlock, x + (g * gram.columns + i0) * lanes, depth, count, sums + g * kBlock * lanes);
    }
  }
}

/// Rows of a task: groups of as many as there are lanes that share the packing of G. What a task keeps of them, `bytes` a row, should stay
/// in a cache, and every thread should get something.
int64_t rows_of_task(int64_t rows, int64_t lanes, int64_t bytes) {
  return lanes *
         std::clamp<int64_t>(std::min(rows / (lanes * 2 * num_threads()), kMaxLaneBytes / std::max<int64_t>(1, bytes * lanes)), 1, 8);
}

/// lanes[c] = rows - lanes[c] for `columns` columns of a group of rows; room for kBlock·width at `block`.
void subtract_from_rows(const float* x, int64_t stride, int64_t rows, int64_t columns, int64_t width, float* block, float* lanes) {
  for (int64_t c = 0; c < columns; c += kBlock) {
    const int64_t count = std::min(kBlock, columns - c);
    rows_to_lanes(x + c, stride, rows, count, width, 0.0f, block);
    for (int64_t i = 0; i < count * width; ++i) lanes[c * width + i] = block[i] - lanes[c * width + i];
  }
}

// ---- codes --------------------------------------------------------------------------------------------------------------------------

struct CodeDescent {
  Gram gram;
  int64_t step_columns;
  const int32_t* step_of;
  Rounding rounding;
  int passes;
};

/// One block of a group of rows, given what all other columns add.
void descend_block(const CodeDescent& descent, Range block, const float* w, float* q, float* errors, const float* steps, float* sums) {
  const int64_t lanes = descent.gram.kernels.width;
  for (int64_t k = 0; k < block.count(); k += kStretch) {
    const int64_t stretch = std::min(kStretch, block.count() - k), rest = k + stretch, column = block.begin + k;
    row_kernels().descend(sums + k * lanes, w + k * lanes, q + k * lanes, errors + k * lanes, lanes, stretch,
                          descent.gram.at(column, column), descent.gram.columns, steps, descent.step_of + column, descent.rounding);
    add_products(descent.gram.kernels, descent.gram.at(column, column + stretch), descent.gram.columns, errors + k * lanes, stretch,
                 block.count() - rest, sums + rest * lanes);
  }
}

void descend_rows(const CodeDescent& descent, const float* w, float* q, const float* steps, int64_t rows) {
  const int64_t lanes = descent.gram.kernels.width, columns = descent.gram.columns, groups = (rows + lanes - 1) / lanes;
  thread_local Scratch scratch;
  float* const errors =
      scratch.floats(groups * lanes * (columns + descent.step_columns + kBlock) + 2 * kBlock * lanes + kPanelDepth * kBlock);
  float* const group_steps = errors + groups * columns * lanes;
  float* const sums = group_steps + groups * descent.step_columns * lanes;
  float* const w_block = sums + groups * kBlock * lanes;
  float* const q_block = w_block + kBlock * lanes;
  float* const packed = q_block + kBlock * lanes;
  const auto rows_of = [&](int64_t g) { return std::min(lanes, rows - g * lanes); };
  for (int64_t g = 0; g < groups; ++g) {
    float* const of_group = errors + g * columns * lanes;
    rows_to_lanes(q + g * lanes * columns, columns, rows_of(g), columns, lanes, 0.0f, of_group);
    subtract_from_rows(w + g * lanes * columns, columns, rows_of(g), columns, lanes, w_block, of_group);
    float* const to = group_steps + g * descent.step_columns * lanes;
    rows_to_lanes(steps + g * lanes * descent.step_columns, descent.step_columns, rows_of(g), descent.step_columns, lanes, 1.0f, to);
    require(std::all_of(to, to + descent.step_columns * lanes, [](float step) { return step > 0; }),
            "descend_codes: a step is not positive");
  }
  for (int pass = 0; pass < descent.passes; ++pass)
    for (int64_t k = 0; k < columns; k += kBlock) {
      const Range block{k, std::min(columns, k + kBlock)};
      sum_products(
          descent.gram, errors, groups, {0, columns}, block, [](int64_t column) { return column + 1; }, packed, sums);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t corner = g * lanes * columns + k;
        rows_to_lanes(w + corner, columns, rows_of(g), block.count(), lanes, 0.0f, w_block);
        rows_to_lanes(q + corner, columns, rows_of(g), block.count(), lanes, 0.0f, q_block);
        descend_block(descent, block, w_block, q_block, errors + (g * columns + k) * lanes, group_steps + g * descent.step_columns * lanes,
                      sums + g * kBlock * lanes);
        lanes_to_rows(q_block, lanes, rows_of(g), block.count(), q + corner, columns);
      }
    }
}

// ---- steps --------------------------------------------------------------------------------------------------------------------------

/// The step that is allowed and nearest.
float nearest_step(const StepGrid& allowed, float step) {
  switch (allowed.kind) {
    case StepGrid::Kind::kF32:
      return step;
    case StepGrid::Kind::kBF16:
      return round_to_bf16(step);
    case StepGrid::Kind::kE4M3Times:
      return E4M3::decode(E4M3::encode(std::clamp(step / allowed.factor, 0x1p-9f, E4M3::kMax))) * allowed.factor;
  }
  throw bug("a grid of steps of no kind");
}

/// The step that loses least of those that are allowed, given r·c and c·G_gg·cᵀ; the old one if it is no worse.
float refit(const StepGrid& allowed, float step, double dot, double curvature) {
  const auto is_step = [](float s) { return s > 0 && std::isfinite(s); };
  if (!(curvature > 0)) return step;
  const auto best = static_cast<float>(static_cast<double>(step) + dot / curvature);
  if (!is_step(best)) return step;
  const float rounded = nearest_step(allowed, best);
  const double change = static_cast<double>(rounded) - static_cast<double>(step);
  return is_step(rounded) && change * change * curvature - 2 * change * dot < 0 ? rounded : step;
}

/// The rows of one task.
class StepDescent {
 public:
  StepDescent(const Gram& gram, int64_t group, const StepGrid& allowed, const float* w, int64_t rows)
      : gram_(gram), group_(group), allowed_(allowed), w_(w), rows_(rows), groups_((rows + lanes() - 1) / lanes()) {
    thread_local Scratch scratch, dot_scratch;
    errors_ = scratch.floats(groups_ * lanes() * (2 * gram.columns + across() + kBlock) + kBlock * lanes() + kPanelDepth * kBlock);
    codes_ = errors_ + groups_ * gram.columns * lanes();
    steps_ = codes_ + groups_ * gram.columns * lanes();
    sums_ = steps_ + groups_ * across() * lanes();
    w_block_ = sums_ + groups_ * kBlock * lanes();
    packed_ = w_block_ + kBlock * lanes();
    dots_ = reinterpret_cast<double*>(dot_scratch.floats(2 * groups_ * (across() + 1) * lanes()));
    curvatures_ = dots_ + groups_ * lanes();
  }

  void run(const float* q, float* steps, int sweeps) {
    for (int64_t g = 0; g < groups_; ++g) load(g, q, steps);
    for (int64_t step = 0; step < across(); ++step) find_curvatures(step);
    for (int sweep = 0; sweep < sweeps; ++sweep) {
      const int64_t unit = std::max<int64_t>(1, kBlock / group_);  // groups to a block
      for (int64_t step = 0; step < across(); step += unit) {
        if (group_ > kBlock)
          descend_group(step);
        else
          descend_block(step, std::min(across(), step + unit));
      }
    }
    for (int64_t g = 0; g < groups_; ++g)
      lanes_to_rows(steps_ + g * across() * lanes(), lanes(), rows_of(g), across(), steps + g * lanes() * across(), across());
  }

 private:
  int64_t lanes() const { return gram_.kernels.width; }
  int64_t across() const { return gram_.columns / group_; }
  int64_t rows_of(int64_t g) const { return std::min(lanes(), rows_ - g * lanes()); }
  int64_t at(int64_t g, int64_t column) const { return (g * gram_.columns + column) * lanes(); }
  float* steps_of(int64_t g, int64_t step) const { return steps_ + (g * across() + step) * lanes(); }
  double* dots_of(int64_t g) const { return dots_ + g * lanes(); }
  double* curvatures_of(int64_t g, int64_t step) const { return curvatures_ + (g * across() + step) * lanes(); }
  float* sums_of(int64_t g, int64_t column) const { return sums_ + (g * kBlock + column) * lanes(); }

  /// Codes, errors and steps of a group of rows.
  void load(int64_t g, const float* q, const float* steps) {
    const int64_t row = g * lanes();
    rows_to_lanes(steps + row * across(), across(), rows_of(g), across(), lanes(), 1.0f, steps_of(g, 0));
    require(std::all_of(steps_of(g, 0), steps_of(g, across()), [](float step) { return step > 0 && std::isfinite(step); }),
            "refit_steps: a step is not a positive number");
    float* const codes = codes_ + at(g, 0);
    rows_to_lanes(q + row * gram_.columns, gram_.columns, rows_of(g), gram_.columns, lanes(), 0.0f, codes);
    // bf16 has as many significant bits as any code, and none to spare for what rounding q lost.
    for (int64_t c = 0; c < gram_.columns; ++c)
      for (int64_t lane = 0; lane < lanes(); ++lane)
        codes[c * lanes() + lane] = round_to_bf16(codes[c * lanes() + lane] / steps_of(g, c / group_)[lane]);
    for (int64_t step = 0; step < across(); ++step) find_errors(g, step);
  }
  /// errors = w - codes·step of the columns of one step.
  void find_errors(int64_t g, int64_t step) {
    const float* const by = steps_of(g, step);
    for (int64_t c = step * group_; c < (step + 1) * group_; c += kBlock) {
      const int64_t count = std::min(kBlock, (step + 1) * group_ - c);
      rows_to_lanes(w_ + g * lanes() * gram_.columns + c, gram_.columns, rows_of(g), count, lanes(), 0.0f, w_block_);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t lane = 0; lane < lanes(); ++lane)
          errors_[at(g, c + i) + lane] = w_block_[i * lanes() + lane] - codes_[at(g, c + i) + lane] * by[lane];
    }
  }
  /// Calls body(block) for blocks of the columns of one step.
  template <class Body>
  void each_block(int64_t step, Body body) {
    for (int64_t c = step * group_; c < (step + 1) * group_; c += kBlock) body(Range{c, std::min((step + 1) * group_, c + kBlock)});
  }
  /// c·G_gg·cᵀ of one step, which stays the same while the codes do.
  void find_curvatures(int64_t step) {
    const Range columns{step * group_, (step + 1) * group_};
    for (int64_t g = 0; g < groups_; ++g) std::fill_n(curvatures_of(g, step), lanes(), 0.0);
    each_block(step, [&](Range block) {
      sum_products(
          gram_, codes_, groups_, columns, block, [&](int64_t) { return columns.begin; }, packed_, sums_);
      for (int64_t g = 0; g < groups_; ++g)
        row_kernels().add_dots(codes_ + at(g, block.begin), sums_of(g, 0), lanes(), block.count(), curvatures_of(g, step));
    });
  }
  /// The step itself, once r·c is there, and the errors that follow.
  void update(int64_t g, int64_t step) {
    float* const steps = steps_of(g, step);
    bool is_changed = false;
    for (int64_t lane = 0; lane < lanes(); ++lane) {
      const float next = refit(allowed_, steps[lane], dots_of(g)[lane], curvatures_of(g, step)[lane]);
      is_changed |= next != steps[lane];
      steps[lane] = next;
    }
    if (is_changed) find_errors(g, step);
  }

  /// A step of more columns than a block has.
  void descend_group(int64_t step) {
    std::fill_n(dots_, groups_ * lanes(), 0.0);
    each_block(step, [&](Range block) {
      sum_products(
          gram_, errors_, groups_, {0, gram_.columns}, block, [&](int64_t) { return step * group_; }, packed_, sums_);
      for (int64_t g = 0; g < groups_; ++g)
        row_kernels().add_dots(codes_ + at(g, block.begin), sums_of(g, 0), lanes(), block.count(), dots_of(g));
    });
    for (int64_t g = 0; g < groups_; ++g) update(g, step);
  }
  /// Steps [first, last), whose columns are a block.
  void descend_block(int64_t first, int64_t last) {
    const Range block{first * group_, last * group_};
    sum_products(
        gram_, errors_, groups_, {0, gram_.columns}, block, [&](int64_t k) { return k / group_ * group_; }, packed_, sums_);
    for (int64_t g = 0; g < groups_; ++g)
      for (int64_t step = first; step < last; ++step) {
        const int64_t column = step * group_, end = column + group_;
        std::fill_n(dots_of(g), lanes(), 0.0);
        row_kernels().add_dots(codes_ + at(g, column), sums_of(g, column - block.begin), lanes(), group_, dots_of(g));
        update(g, step);
        add_products(gram_.kernels, gram_.at(column, end), gram_.columns, errors_ + at(g, column), group_, block.end - end,
                     sums_of(g, end - block.begin));
      }
  }

  const Gram& gram_;
  int64_t group_;
  const StepGrid& allowed_;
  const float* w_;
  int64_t rows_, groups_;
  // All with a row in each lane, one group of rows after the other.
  float *errors_, *codes_;      // [columns]
  float* steps_;                // [across]
  float *sums_, *w_block_;      // [kBlock], w_block_ of one group of rows
  float* packed_;               // of G
  double *dots_, *curvatures_;  // one, and [across]
};

}  // namespace

void descend_codes(const Tensor& w, Tensor& q, const Tensor& gram, const Tensor& steps, const std::vector<int32_t>& step_of,
                   const FeedbackGrid& grid, int passes) {
  require(w.rank() == 2 && q.shape() == w.shape() && steps.rank() == 2 && steps.dim(0) == w.dim(0),
          "descend_codes: w and q [O, C] and steps [O, S] do not fit");
  const int64_t rows = w.dim(0), columns = w.dim(1), step_columns = steps.dim(1);
  require(gram.rank() == 2 && gram.dim(0) == columns && gram.dim(1) == columns, "descend_codes: gram is not [C, C]");
  require(static_cast<int64_t>(step_of.size()) == columns &&
              std::all_of(step_of.begin(), step_of.end(), [&](int32_t s) { return s >= 0 && s < step_columns; }),
          "descend_codes: step_of does not name a column of steps for each column");
  const CodeDescent by{{panel_kernels(), gram.data<float>(), columns}, step_columns, step_of.data(), rounding_of(grid), passes};
  const float *const wanted = w.data<float>(), *const all_steps = steps.data<float>();
  float* const values = q.data<float>();
  parallel_ranges(rows, rows_of_task(rows, by.gram.kernels.width, columns * 4), [&](int64_t begin, int64_t end) {
    descend_rows(by, wanted + begin * columns, values + begin * columns, all_steps + begin * step_columns, end - begin);
  });
}

void refit_steps(const Tensor& w, const Tensor& q, const Tensor& gram, int64_t group, const StepGrid& allowed, int sweeps, Tensor& steps) {
  require(w.rank() == 2 && q.shape() == w.shape() && gram.rank() == 2 && gram.dim(0) == w.dim(1) && gram.dim(1) == w.dim(1),
          "refit_steps: w and q [O, C] and gram [C, C] do not fit");
  const int64_t rows = w.dim(0), columns = w.dim(1);
  require(group > 0 && columns % group == 0 && steps.rank() == 2 && steps.dim(0) == rows && steps.dim(1) * group == columns,
          "refit_steps: steps are not [O, C/group]");
  require(allowed.factor > 0, "refit_steps: the factor of steps is not positive");
  const Gram by{panel_kernels(), gram.data<float>(), columns};
  const float *const wanted = w.data<float>(), *const values = q.data<float>();
  float* const all_steps = steps.data<float>();
  parallel_ranges(rows, rows_of_task(rows, by.kernels.width, columns * 8), [&](int64_t begin, int64_t end) {
    StepDescent(by, group, allowed, wanted + begin * columns, end - begin)
        .run(values + begin * columns, all_steps + begin * (columns / group), sweeps);
  });
}

}  // namespace ptq::kernels::cpu
