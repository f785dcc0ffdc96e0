#pragma once
// Transposing 16 x 16 elements of 32 bits in registers. Private to each file, as lanes.h.

#include <immintrin.h>

namespace ptq::kernels::cpu {
namespace {

/// rows[i] holds row i; on return it holds column i.
[[gnu::always_inline]] inline void transpose_16x16(__m512i (&rows)[16]) {
  __m512i pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // quads[4i + j]: in its 128-bit lane L column 4L + j of rows 4i .. 4i+3
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low_above = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x44),
                  high_above = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xee);
    const __m512i low_below = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x44);
    const __m512i high_below = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xee);
    rows[j] = _mm512_shuffle_i32x4(low_above, low_below, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(low_above, low_below, 0xdd);
    rows[8 + j] = _mm512_shuffle_i32x4(high_above, high_below, 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(high_above, high_below, 0xdd);
  }
}

/// Packs rows of a weight into panel[step][32]: load(row, step, steps) gives 16 steps of a row as 32-bit elements, 0 past `steps` of them.
template <class Load>
[[gnu::always_inline]] inline void pack_transposed(int rows, long steps, int* panel, Load load) {
  for (int half = 0; half < 32; half += 16) {
    for (long step = 0; step < steps; step += 16) {
      const long valid = steps - step < 16 ? steps - step : 16;
      __m512i block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) block[i] = half + i < rows ? load(half + i, step, valid) : _mm512_setzero_si512();
      transpose_16x16(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        if (i < valid) _mm512_storeu_si512(panel + (step + i) * 32 + half, block[i]);
    }
  }
}

}  // namespace
}  // namespace ptq::kernels::cpu
