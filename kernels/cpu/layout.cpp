// Ops that move elements and compute nothing.

#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/transpose_tile.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kRowsPerTask = 8;

/// Columns [begin, end) of kTilesPerRun tiles of rows from r0 on, or what there is of them.
template <class E>
void transpose_part(const E* x, int64_t rows, int64_t columns, int64_t r0, int64_t begin, int64_t end, E* out) {
  constexpr int kSide = kTileSide<E>;
  alignas(64) E tile[kSide * kSide];
  for (int64_t c = begin; c < end; c += kSide)
    for (int64_t r = r0; r < std::min(r0 + kTilesPerRun * kSide, rows); r += kSide) {
      const int tile_rows = static_cast<int>(std::min<int64_t>(kSide, rows - r));
      const int tile_columns = static_cast<int>(std::min<int64_t>(kSide, end - c));
      const E* const from = x + r * columns + c;
      if (tile_rows == kSide && tile_columns == kSide) {
        if (c + kSide < end)  // rows are too far apart for the processor to guess what comes next
          for (int i = 0; i < kSide; ++i) __builtin_prefetch(from + i * columns + kSide, 0, 2);
        transpose_tile(from, columns, tile);
      } else {
        alignas(64) E edge[kSide * kSide] = {};
        for (int i = 0; i < tile_rows; ++i) std::copy_n(from + i * columns, tile_columns, edge + i * kSide);
        transpose_tile(edge, kSide, tile);
      }
      store_tile(tile, tile_rows, tile_columns, out + c * rows + r, rows);
    }
}

template <class E>
void transpose_as(const Tensor& x, Tensor& out) {
  constexpr int64_t kRows = kTilesPerRun * kTileSide<E>, kColumns = 32 * kTileSide<E>;  // of a task
  const int64_t rows = x.dim(0), columns = x.dim(1), across = (columns + kColumns - 1) / kColumns;
  const auto* const from = reinterpret_cast<const E*>(x.raw());
  auto* const to = reinterpret_cast<E*>(out.raw());
  parallel_for((rows + kRows - 1) / kRows * across, [&](int64_t task) {
    const int64_t begin = task % across * kColumns;
    transpose_part(from, rows, columns, task / across * kRows, begin, std::min(begin + kColumns, columns), to);
  });
}

}  // namespace

void transpose(const Tensor& x, Tensor& out) {
  require(x.rank() == 2 && out.rank() == 2 && out.dim(0) == x.dim(1) && out.dim(1) == x.dim(0),
          "transpose: x [R, C] and out [C, R] do not fit");
  require(x.dtype() == out.dtype(), "transpose: dtypes differ");
  switch (dtype_bytes(x.dtype())) {
    case 1:
      return transpose_as<uint8_t>(x, out);
    case 2:
      return transpose_as<uint16_t>(x, out);
    case 4:
      return transpose_as<uint32_t>(x, out);
    default:
      throw bug("transpose: elements are not of 1, 2 or 4 bytes");
  }
}

void slice_columns(const Tensor& x, int64_t begin, Tensor& out) {
  require(x.rank() == 2 && out.rank() == 2 && x.dim(0) == out.dim(0) && x.dtype() == out.dtype(),
          "slice_columns: row counts or dtypes differ");
  require(begin >= 0 && begin + out.dim(1) <= x.dim(1), "slice_columns: columns outside x");
  const std::byte* const from = x.raw() + begin * dtype_bytes(x.dtype());
  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) std::copy_n(from + t * x.row_bytes(), out.row_bytes(), out.raw() + t * out.row_bytes());
  });
}

void place_columns(const Tensor& x, int64_t begin, Tensor& out) {
  require(x.rank() == 2 && out.rank() == 2 && x.dim(0) == out.dim(0) && x.dtype() == out.dtype(),
          "place_columns: row counts or dtypes differ");
  require(begin >= 0 && begin + x.dim(1) <= out.dim(1), "place_columns: columns outside out");
  std::byte* const to = out.raw() + begin * dtype_bytes(x.dtype());
  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) std::copy_n(x.raw() + t * x.row_bytes(), x.row_bytes(), to + t * out.row_bytes());
  });
}

void gather_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out) {
  const int64_t width = x.dim(1), count = out.dim(1);
  require(x.dim(0) == out.dim(0) && static_cast<int64_t>(columns.size()) == count, "gather_columns: not one column for each of out");
  const float* const from = x.data<float>();
  float* const to = out.data<float>();
  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t i = 0; i < count; ++i) to[t * count + i] = from[t * width + columns[static_cast<size_t>(i)]];
  });
}

void scatter_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out) {
  const int64_t width = out.dim(1), count = x.dim(1);
  require(x.dim(0) == out.dim(0) && static_cast<int64_t>(columns.size()) == count, "scatter_columns: not one column for each of x");
  const float* const from = x.data<float>();
  float* const to = out.data<float>();
  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t i = 0; i < count; ++i) to[t * width + columns[static_cast<size_t>(i)]] = from[t * count + i];
  });
}

void expand_latent(const Tensor& kv, const Tensor& k_rot, int64_t heads, int64_t nope, Tensor& k, Tensor& v) {
  const int64_t tokens = kv.dim(0), rotary = k_rot.dim(1), value = kv.dim(1) / heads - nope;
  require(kv.dim(1) == heads * (nope + value) && nope >= 0 && value > 0, "expand_latent: kv is not [T, N·(nope + Dv)]");
  require(k.dim(1) == heads * (nope + rotary) && v.dim(1) == heads * value, "expand_latent: k or v has a wrong width");
  require(k_rot.dim(0) == tokens && k.dim(0) == tokens && v.dim(0) == tokens, "expand_latent: token counts differ");
  const float *const both = kv.data<float>(), *const rotated = k_rot.data<float>();
  float *const keys = k.data<float>(), *const values = v.data<float>();
  parallel_ranges(tokens, kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t head = t * heads; head < (t + 1) * heads; ++head) {
        const float* const from = both + head * (nope + value);
        float* const key = keys + head * (nope + rotary);
        std::copy_n(from, nope, key);
        std::copy_n(rotated + t * rotary, rotary, key + nope);
        std::copy_n(from + nope, value, values + head * value);
      }
  });
}

void expand_latent_backward(const Tensor& dk, const Tensor& dv, int64_t heads, int64_t nope, Tensor& dkv, Tensor& dk_rot) {
  const int64_t tokens = dk.dim(0), rotary = dk.dim(1) / heads - nope, value = dv.dim(1) / heads;
  require(dk.dim(1) == heads * (nope + rotary) && nope >= 0 && rotary >= 0, "expand_latent_backward: dk is not [T, N·(nope + R)]");
  require(dv.dim(1) == heads * value, "expand_latent_backward: dv is not [T, N·Dv]");
  require(dkv.dim(1) == heads * (nope + value) && dk_rot.dim(1) == heads * rotary, "expand_latent_backward: a result has a wrong width");
  require(dv.dim(0) == tokens && dkv.dim(0) == tokens && dk_rot.dim(0) == tokens, "expand_latent_backward: token counts differ");
  const float *const keys = dk.data<float>(), *const values = dv.data<float>();
  float *const both = dkv.data<float>(), *const rotated = dk_rot.data<float>();
  parallel_ranges(tokens, kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t head = first * heads; head < last * heads; ++head) {
      const float* const key = keys + head * (nope + rotary);
      float* const to = both + head * (nope + value);
      std::copy_n(key, nope, to);
      std::copy_n(values + head * value, value, to + nope);
      std::copy_n(key + nope, rotary, rotated + head * rotary);
    }
  });
}

}  // namespace ptq::kernels::cpu
