#pragma once
// The f32 tile of the matrix product over vectors of this file's instruction set, for panel_*.cpp. Private to each file, as lanes.h.

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/panel_kernels.h"

namespace ptq::kernels::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kTileTokens = 14, kPanelLanes = 2;  // 28 accumulators, 2 of W and 1 of x: 31 of 32 registers
#elif defined(__AVX2__)
constexpr int kTileTokens = 6, kPanelLanes = 1;  // 12 accumulators, 2 of W and 1 of x: 15 of 16
#else
constexpr int kTileTokens = 4, kPanelLanes = 1;
#endif
constexpr int kPanelWidth = 16 * kPanelLanes;

/// y[rows][P] (+)= Σ_step x(row, step) · panel[step][P] with x(row, step) = x[row·kRowStride + step·step_stride].
template <int kRows, int64_t kRowStride>
PTQ_INLINE void tile_rows(const float* x, int64_t step_stride, const float* panel, int64_t steps, float* y, int64_t y_stride, bool first) {
  Lanes<float> sums[kRows][kPanelLanes];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < kPanelLanes; ++n) sums[m][n] = first ? Lanes<float>::all(0.0f) : Lanes<float>::load(y + m * y_stride + 16 * n);
  for (int64_t step = 0; step < steps; ++step) {
    Lanes<float> w[kPanelLanes];
#pragma GCC unroll 2
    for (int n = 0; n < kPanelLanes; ++n) w[n] = Lanes<float>::load(panel + 16 * n);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const Lanes<float> value = Lanes<float>::all(x[m * kRowStride]);
#pragma GCC unroll 2
      for (int n = 0; n < kPanelLanes; ++n) sums[m][n] = fma(value, w[n], sums[m][n]);
    }
    panel += kPanelWidth;
    x += step_stride;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < kPanelLanes; ++n) sums[m][n].store(y + m * y_stride + 16 * n);
}

using TileFunction = void (*)(const float* x, int64_t step_stride, const float* panel, int64_t steps, float* y, int64_t y_stride,
                              bool first);
template <int kRows, int64_t kRowStride>
void tile_function(const float* x, int64_t step_stride, const float* panel, int64_t steps, float* y, int64_t y_stride, bool first) {
  tile_rows<kRows, kRowStride>(x, step_stride, panel, steps, y, y_stride, first);
}

/// One function per number of rows 1..kTileTokens, so that a ragged edge costs no more than its own rows.
template <int64_t kRowStride>
struct TileTable {
  TileFunction rows[kTileTokens + 1];
  template <int kRows = 1>
  constexpr void fill() {
    rows[kRows] = tile_function<kRows, kRowStride>;
    if constexpr (kRows < kTileTokens) fill<kRows + 1>();
  }
  constexpr TileTable() : rows{} { fill(); }
};
constexpr TileTable<kXStride> kTiles;
constexpr TileTable<1> kColumnTiles;

void tile(int rows, const void* x_panel, const void* panel, int64_t steps, float* y, int64_t y_stride, bool first) {
  kTiles.rows[rows](static_cast<const float*>(x_panel), 1, static_cast<const float*>(panel), steps, y, y_stride, first);
}

void tile_of_columns(int rows, const float* x, int64_t x_stride, const float* panel, int64_t steps, float* y, int64_t y_stride) {
  kColumnTiles.rows[rows](x, x_stride, panel, steps, y, y_stride, false);
}

PTQ_INLINE float widen_bf16(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

void copy_f32(const float* x, int64_t stride, int rows, int64_t count, void* x_panel) {
  auto* to = static_cast<float*>(x_panel);
  for (int row = 0; row < rows; ++row) __builtin_memcpy(to + row * kXStride, x + row * stride, static_cast<size_t>(count) * sizeof(float));
}
void copy_bf16(const uint16_t* x, int64_t stride, int rows, int64_t count, void* x_panel) {
  auto* to = static_cast<float*>(x_panel);
  for (int row = 0; row < rows; ++row)
    for (int64_t c = 0; c < count; ++c) to[row * kXStride + c] = widen_bf16(x[row * stride + c]);
}

}  // namespace
}  // namespace ptq::kernels::cpu
