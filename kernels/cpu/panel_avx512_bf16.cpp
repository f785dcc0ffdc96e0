// Products of bf16 pairs (VDPBF16PS). Compiled with AVX512_BF16; only called where has_bf16_pairs() says so. The instruction treats
// subnormals as zeros and rounds by its own rules, the same in every lane and on every tile.
#include <immintrin.h>

#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/transpose_avx512.h"

namespace ptq::kernels::cpu {

namespace {
constexpr int kTileTokens = 14, kPanelWidth = 32;

__m512bh as_pairs(__m512i bits) { return __builtin_bit_cast(__m512bh, bits); }

template <int kRows>
void tile_rows(const int32_t* x, const int32_t* panel, int64_t steps, float* y, int64_t y_stride, bool first) {
  __m512 sums[kRows][2];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) sums[m][n] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(y + m * y_stride + 16 * n);
  for (int64_t step = 0; step < steps; ++step) {
    const __m512bh w0 = as_pairs(_mm512_loadu_si512(panel)), w1 = as_pairs(_mm512_loadu_si512(panel + 16));
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const __m512bh value = as_pairs(_mm512_set1_epi32(x[m * kXStride]));
      sums[m][0] = _mm512_dpbf16_ps(sums[m][0], value, w0);
      sums[m][1] = _mm512_dpbf16_ps(sums[m][1], value, w1);
    }
    panel += kPanelWidth;
    ++x;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) _mm512_storeu_ps(y + m * y_stride + 16 * n, sums[m][n]);
}

struct TileTable {
  void (*rows[kTileTokens + 1])(const int32_t*, const int32_t*, int64_t, float*, int64_t, bool);
  template <int kRows = 1>
  constexpr void fill() {
    rows[kRows] = tile_rows<kRows>;
    if constexpr (kRows < kTileTokens) fill<kRows + 1>();
  }
  constexpr TileTable() : rows{} { fill(); }
};
constexpr TileTable kTiles;

void tile(int rows, const void* x_panel, const void* panel, int64_t steps, float* y, int64_t y_stride, bool first) {
  kTiles.rows[rows](static_cast<const int32_t*>(x_panel), static_cast<const int32_t*>(panel), steps, y, y_stride, first);
}

void pack_bf16(const uint16_t* w, int64_t stride, int rows, int64_t count, void* panel) {
  const int64_t steps = (count + 1) / 2;
  pack_transposed(rows, steps, static_cast<int*>(panel), [&](int row, int64_t step, int64_t) {
    const int64_t values = count - 2 * step;
    const __mmask32 mask = values >= 32 ? ~__mmask32{0} : static_cast<__mmask32>((1u << values) - 1);
    return _mm512_maskz_loadu_epi16(mask, w + row * stride + 2 * step);
  });
}

void copy_bf16(const uint16_t* x, int64_t stride, int rows, int64_t count, void* x_panel) {
  auto* to = static_cast<uint16_t*>(x_panel);
  for (int row = 0; row < rows; ++row) {
    uint16_t* const pairs = to + row * 2 * kXStride;
    __builtin_memcpy(pairs, x + row * stride, static_cast<size_t>(count) * sizeof(uint16_t));
    if (count % 2) pairs[count] = 0;
  }
}
}  // namespace

const PanelKernels kPanelAvx512Bf16 = {kTileTokens, kPanelWidth, 2,       nullptr, pack_bf16, nullptr,
                                       copy_bf16,   tile,        nullptr, nullptr, nullptr};

}  // namespace ptq::kernels::cpu
