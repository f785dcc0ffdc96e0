// Quantizers with a scale for each row, block or group of a weight, and those that make an activation's scales as they go.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 32768;
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t rows_per_task(int64_t columns) { return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, columns)); }

/// Which scale each row of a weight begins with.
struct Grid {
  int64_t rows, columns, block_rows, block_columns, across;
  Grid(const Tensor& w, int64_t rows_of_block, int64_t columns_of_block)
      : rows(w.dim(0)), columns(w.dim(1)), block_rows(rows_of_block), block_columns(columns_of_block), across(0) {
    require(w.rank() == 2 && block_rows > 0 && block_columns > 0, "grid of scales: the tensor is no matrix, or a block is empty");
    across = divide_up(columns, block_columns);
  }
  int64_t count() const { return divide_up(rows, block_rows) * across; }
  int64_t scale_of(int64_t row) const { return row / block_rows * across; }
};
/// A scale per row. An empty row still is one block.
Grid grid_of_rows(const Tensor& w) { return {w, 1, std::max<int64_t>(1, w.dim(-1))}; }
Grid grid_of_blocks(const Tensor& w, const ScaleBlock& block) { return {w, block.rows, block.columns}; }
Grid grid_of_groups(const Tensor& w, int64_t group) {
  require(group > 0 && w.dim(-1) % group == 0, "quantizer: groups do not divide the columns");
  return {w, 1, group};
}

template <class Kernel>
void quantize(const Tensor& w, const Tensor& scales, const Grid& grid, Kernel kernel, Tensor& codes) {
  require(codes.numel() == w.numel() && scales.numel() == grid.count(), "quantizer: codes or scales have a wrong shape");
  const Source source = source_of(w.dtype());
  using Code = std::conditional_t<std::is_same_v<Kernel, decltype(RowKernels::quantize_fp8_groups)>, uint8_t, int8_t>;
  auto* const to = codes.data<Code>();
  const auto* const factors = scales.data<float>();
  require(std::all_of(factors, factors + grid.count(), [](float scale) { return scale > 0; }), "quantizer: a scale is not positive");
  parallel_ranges(grid.rows, rows_per_task(grid.columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernel(w.raw() + row * w.row_bytes(), source, grid.columns, grid.block_columns, factors + grid.scale_of(row),
             to + row * grid.columns);
  });
}

template <class Code, class Kernel>
void dequantize(const Tensor& codes, const Tensor& scales, const Grid& grid, Kernel kernel, Tensor& w) {
  require(codes.numel() == w.numel() && scales.numel() == grid.count(), "dequantizer: w or scales have a wrong shape");
  const auto* const from = codes.data<Code>();
  const auto* const factors = scales.data<float>();
  auto* const to = w.data<float>();
  parallel_ranges(grid.rows, rows_per_task(grid.columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernel(from + row * grid.columns, grid.columns, grid.block_columns, factors + grid.scale_of(row), to + row * grid.columns);
  });
}

/// kernel(row, columns) on each row of x [T, C].
template <class Body>
void each_row(Tensor& x, Body body) {
  require(x.rank() == 2, "quantizer of activations: x is not [T, C]");
  const int64_t columns = x.dim(1);
  float* const values = x.data<float>();
  parallel_ranges(x.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(values + row * columns, columns);
  });
}

}  // namespace

void block_amax(const Tensor& x, const ScaleBlock& block, Tensor& amaxes) {
  const Grid grid = grid_of_blocks(x, block);
  require(amaxes.numel() == grid.count(), "block_amax: amaxes have a wrong shape");
  const Source source = source_of(x.dtype());
  auto* const to = amaxes.data<float>();
  // A task is some whole rows of blocks: no two tasks share an amax.
  parallel_ranges(
      divide_up(grid.rows, block.rows), std::max<int64_t>(1, rows_per_task(grid.columns) / block.rows), [&](int64_t begin, int64_t end) {
        std::fill(to + begin * grid.across, to + end * grid.across, 0.0f);
        for (int64_t row = begin * block.rows; row < std::min(end * block.rows, grid.rows); ++row)
          row_kernels().max_magnitudes(x.raw() + row * x.row_bytes(), source, grid.columns, block.columns, to + grid.scale_of(row));
      });
}
void row_amax(const Tensor& x, Tensor& amaxes) { block_amax(x, {.rows = 1, .columns = std::max<int64_t>(1, x.dim(-1))}, amaxes); }

void amaxes_to_scales(Tensor& amaxes, float format_max) {
  auto* const values = amaxes.data<float>();
  parallel_ranges(amaxes.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      require(std::isfinite(values[i]) && values[i] >= 0, "amaxes_to_scales: an amax is not finite");
      values[i] = values[i] == 0 ? 1.0f : std::max(values[i], 0x1p-126f) / format_max;
    }
  });
}

void quantize_fp8_rows(const Tensor& w, const Tensor& scales, Tensor& codes) {
  quantize(w, scales, grid_of_rows(w), row_kernels().quantize_fp8_groups, codes);
}
void quantize_fp8_blocks(const Tensor& w, const Tensor& scales, const ScaleBlock& block, Tensor& codes) {
  quantize(w, scales, grid_of_blocks(w, block), row_kernels().quantize_fp8_groups, codes);
}
void dequantize_fp8_rows(const Tensor& codes, const Tensor& scales, Tensor& w) {
  dequantize<uint8_t>(codes, scales, grid_of_rows(w), row_kernels().dequantize_fp8_groups, w);
}
void dequantize_fp8_blocks(const Tensor& codes, const Tensor& scales, const ScaleBlock& block, Tensor& w) {
  dequantize<uint8_t>(codes, scales, grid_of_blocks(w, block), row_kernels().dequantize_fp8_groups, w);
}
void fake_quantize_fp8_groups(Tensor& x, int64_t group) {
  require(group > 0, "fake_quantize_fp8_groups: a group is empty");
  each_row(x, [&](float* row, int64_t columns) { row_kernels().fake_quantize_fp8_groups(row, columns, group); });
}

void quantize_int8_rows(const Tensor& w, const Tensor& scales, Tensor& codes) {
  quantize(w, scales, grid_of_rows(w), row_kernels().quantize_int8_groups, codes);
}
void dequantize_int8_rows(const Tensor& codes, const Tensor& scales, Tensor& w) {
  dequantize<int8_t>(codes, scales, grid_of_rows(w), row_kernels().dequantize_int_groups, w);
}
void fake_quantize_int8(Tensor& x, float scale) {
  require(scale > 0, "fake_quantize_int8: the scale is not positive");
  float* const values = x.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().fake_quantize_int8(values + begin, end - begin, scale); });
}
void fake_quantize_int8_groups(Tensor& x, int64_t group) {
  require(group > 0, "fake_quantize_int8_groups: a group is empty");
  each_row(x, [&](float* row, int64_t columns) { row_kernels().fake_quantize_int8_groups(row, columns, group); });
}

void quantize_int4_groups(const Tensor& w, const Tensor& scales, int64_t group, Tensor& codes) {
  quantize(w, scales, grid_of_groups(w, group), row_kernels().quantize_int4_groups, codes);
}
void dequantize_int4_groups(const Tensor& codes, const Tensor& scales, int64_t group, Tensor& w) {
  dequantize<int8_t>(codes, scales, grid_of_groups(w, group), row_kernels().dequantize_int_groups, w);
}

void pack_int4_row_pairs(const Tensor& codes, Tensor& packed) {
  const int64_t columns = codes.dim(1);
  require(codes.dim(0) % 2 == 0 && packed.numel() * 2 == codes.numel(), "pack_int4_row_pairs: rows are odd, or packed has a wrong shape");
  const auto* const from = codes.data<int8_t>();
  auto* const to = packed.data<uint8_t>();
  parallel_ranges(codes.dim(0) / 2, rows_per_task(2 * columns), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair)
      row_kernels().pack_int4_pair(from + 2 * pair * columns, from + (2 * pair + 1) * columns, columns, to + pair * columns);
  });
}
void unpack_int4_row_pairs(const Tensor& packed, Tensor& codes) {
  const int64_t columns = codes.dim(1);
  require(codes.dim(0) % 2 == 0 && packed.numel() * 2 == codes.numel(), "unpack_int4_row_pairs: rows are odd, or packed has a wrong shape");
  const auto* const from = packed.data<uint8_t>();
  auto* const to = codes.data<int8_t>();
  parallel_ranges(codes.dim(0) / 2, rows_per_task(2 * columns), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair)
      row_kernels().unpack_int4_pair(from + pair * columns, columns, to + 2 * pair * columns, to + (2 * pair + 1) * columns);
  });
}
void pack_int4_words(const Tensor& codes, Tensor& words) {
  const int64_t columns = codes.dim(1), across = divide_up(columns, 8);
  require(words.numel() == codes.dim(0) * across, "pack_int4_words: words have a wrong shape");
  const auto* const from = codes.data<int8_t>();
  auto* const to = words.data<int32_t>();
  parallel_ranges(codes.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) row_kernels().pack_int4_words(from + row * columns, columns, to + row * across);
  });
}
void unpack_int4_words(const Tensor& words, Tensor& codes) {
  const int64_t columns = codes.dim(1), across = divide_up(columns, 8);
  require(words.numel() == codes.dim(0) * across, "unpack_int4_words: words have a wrong shape");
  const auto* const from = words.data<int32_t>();
  auto* const to = codes.data<int8_t>();
  parallel_ranges(codes.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) row_kernels().unpack_int4_words(from + row * across, columns, to + row * columns);
  });
}

}  // namespace ptq::kernels::cpu
