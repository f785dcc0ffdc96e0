// The factor of H = M·D·Mᵀ, in blocks of columns from the last one: a block takes the products of all columns behind it, which is where
// the time goes, then follows its own columns. Columns within a block do the same in small, with f64 where one pivot follows the other.

#include <algorithm>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_search_ops.h"
#include "kernels/cpu/packed_panels.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kBlock = 256;  // of columns; times kPanelDepth, what stays in L2 while rows stream by
static_assert(kBlock % kFactorBlock == 0);

/// A few columns of a block, and what makes M of the rows above them.
struct Columns {
  int64_t begin = 0, end = 0;
  Scratch update_memory, solve_memory;
  PackedPanels update{panel_kernels(), false, update_memory};  ///< -D·M of these rows and the columns from `end` to the block's end
  PackedPanels solve{panel_kernels(), false, solve_memory};    ///< D⁻¹·M⁻¹ of these rows and columns
  int64_t count() const { return end - begin; }
};

class Factor {
 public:
  Factor(float* values, int64_t columns) : values_(values), columns_(columns), pivots_(static_cast<size_t>(columns)) {}

  void run(float damping) {
    damp(damping);
    // Their final sizes at once: block after block needs a little more.
    scaled_.floats(kBlock * columns_);
    behind_memory_.floats((columns_ + kPanelDepth) * kBlock);
    for (int64_t begin = (columns_ - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
      const int64_t end = std::min(columns_, begin + kBlock);
      if (end < columns_) subtract_columns_behind(begin, end);
      factor(begin, end);
      parallel_ranges(begin, rows_per_task(begin), [&](int64_t first, int64_t last) {
        for (int64_t c = parts_of(begin, end) - 1; c >= 0; --c) {
          subtract(parts_[c], end, first, last);
          solve(parts_[c], first, last);
        }
      });
    }
    parallel_ranges(columns_, 64, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) std::fill_n(at(row, 0), row + 1, 0.0f);
    });
  }

 private:
  float* at(int64_t row, int64_t column) { return values_ + row * columns_ + column; }
  static int64_t parts_of(int64_t begin, int64_t end) { return (end - begin + kFactorBlock - 1) / kFactorBlock; }
  /// Whole tiles, few enough that panels pay, and enough tasks that no thread waits long.
  int64_t rows_per_task(int64_t rows) const {
    const int64_t tile = parts_[0].update.tile_rows(), wanted = rows / (4 * num_threads()) / tile * tile;
    return std::clamp(wanted, 2 * tile, 18 * tile);
  }

  void damp(float damping) {
    double sum = 0;
    for (int64_t c = 0; c < columns_; ++c) sum += static_cast<double>(*at(c, c));
    added_ = static_cast<double>(damping) * sum / static_cast<double>(columns_);
    for (int64_t c = 0; c < columns_; ++c) {
      float& diagonal = *at(c, c);
      if (diagonal > 0) {
        diagonal = static_cast<float>(static_cast<double>(diagonal) + added_);
        continue;
      }
      diagonal = 1;
      for (int64_t row = 0; row < c; ++row) *at(row, c) = 0;
      std::fill(at(c, c + 1), at(c, columns_), 0.0f);
    }
  }

  /// out[row][j] = -pivot·M of rows [first, last) and columns [begin, end).
  void scaled(int64_t first, int64_t last, int64_t begin, int64_t end, float* out) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t j = begin; j < end; ++j) *out++ = -pivots_[static_cast<size_t>(j)] * *at(row, j);
  }

  /// Columns [begin, end) of the rows down to them, less the products of all columns behind.
  void subtract_columns_behind(int64_t begin, int64_t end) {
    const int64_t depth = columns_ - end;
    float* const by = scaled_.floats((end - begin) * depth);
    parallel_ranges(end - begin, 4,
                    [&](int64_t first, int64_t last) { scaled(begin + first, begin + last, end, columns_, by + first * depth); });
    behind_.pack(by, depth, end - begin, depth);
    parallel_ranges(end, rows_per_task(end), [&](int64_t first, int64_t last) {
      behind_.multiply(at(first, end), columns_, last - first, 0, end - begin, at(first, begin), columns_, false);
    });
  }

  /// M of rows and columns [begin, end), and the parts that make it for the rows above.
  void factor(int64_t begin, int64_t end) {
    float small[kBlock * kFactorBlock];
    for (int64_t c = parts_of(begin, end) - 1; c >= 0; --c) {
      Columns& part = parts_[c];
      part.begin = begin + c * kFactorBlock;
      part.end = std::min(end, part.begin + kFactorBlock);
      if (part.end < end) {
        scaled(part.begin, part.end, part.end, end, small);
        part.update.pack(small, end - part.end, part.count(), end - part.end);
      }
      subtract(part, end, begin, part.end);
      row_kernels().factor_block(at(part.begin, part.begin), columns_, part.count(), added_, &pivots_[static_cast<size_t>(part.begin)],
                                 small);
      part.solve.pack(small, part.count(), part.count(), part.count());
      solve(part, begin, part.begin);
    }
  }

  /// Rows [first, last) of the part's columns, less the products of the columns between it and the block's end.
  void subtract(const Columns& part, int64_t block_end, int64_t first, int64_t last) {
    if (part.end == block_end) return;
    part.update.multiply(at(first, part.end), columns_, last - first, 0, part.count(), at(first, part.begin), columns_, false);
  }
  /// M of rows [first, last) of the part's columns, from what is left of H there: H = M·D·(M of the part)ᵀ.
  void solve(const Columns& part, int64_t first, int64_t last) {
    thread_local Scratch scratch;
    float* const solved = scratch.floats((last - first) * kFactorBlock);
    part.solve.multiply(at(first, part.begin), columns_, last - first, 0, part.count(), solved, kFactorBlock, true);
    for (int64_t row = first; row < last; ++row) std::copy_n(solved + (row - first) * kFactorBlock, part.count(), at(row, part.begin));
  }

  float* values_;
  int64_t columns_;
  double added_ = 0;
  std::vector<float> pivots_;
  Columns parts_[kBlock / kFactorBlock];
  Scratch scaled_, behind_memory_;
  PackedPanels behind_{panel_kernels(), false, behind_memory_};
};

}  // namespace

void feedback_factor(Tensor& gram, float damping) {
  require(gram.rank() == 2 && gram.dim(0) == gram.dim(1), "feedback_factor: gram is not [C, C]");
  require(damping >= 0, "feedback_factor: the damping is negative");
  if (gram.numel() > 0) Factor(gram.data<float>(), gram.dim(0)).run(damping);
}

}  // namespace ptq::kernels::cpu
