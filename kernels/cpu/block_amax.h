#pragma once
// max |x| of short blocks of f32, one after the other. Private to each file, as lanes.h. Integer comparisons order magnitudes as floats do.

#include "kernels/cpu/lanes.h"

namespace ptq::kernels::cpu {
namespace {

/// The bits of max |x| of one block.
template <int kBlockWidth>
PTQ_INLINE uint32_t magnitude_of_block(const float* values) {
  uint32_t largest = 0;
  for (int i = 0; i < kBlockWidth; ++i) {
    const uint32_t magnitude = __builtin_bit_cast(uint32_t, values[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

#if defined(__AVX512F__)
/// The lanes' maxima over a block, without signs.
template <int kBlockWidth>
PTQ_INLINE __m512i magnitudes_of_block(const float* values) {
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < kBlockWidth; i += 16)
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_loadu_si512(values + i), _mm512_set1_epi32(0x7fffffff)));
  return largest;
}
/// Sixteen blocks by a tree that halves the vectors of every level: lane i of its root is block i's.
template <int kBlockWidth>
PTQ_INLINE __m512i magnitudes_of_16_blocks(const float* values) {
  __m512i pairs[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512i a = magnitudes_of_block<kBlockWidth>(values + 2 * i * kBlockWidth);
    const __m512i b = magnitudes_of_block<kBlockWidth>(values + (2 * i + 1) * kBlockWidth);
    pairs[i] = _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i a = pairs[2 * i], b = pairs[2 * i + 1];
    fours[i] = _mm512_max_epu32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512i a = fours[2 * i], b = fours[2 * i + 1];
    eights[i] = _mm512_max_epu32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
  const __m512i a = eights[0], b = eights[1];
  return _mm512_max_epu32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}
#endif

/// values [blocks][kBlockWidth], a multiple of 16 wide.
template <int kBlockWidth>
PTQ_INLINE void amaxes_of_blocks(const float* values, int blocks, float* amaxes) {
  int block = 0;
#if defined(__AVX512F__)
  for (; block + 16 <= blocks; block += 16)
    _mm512_storeu_si512(amaxes + block, magnitudes_of_16_blocks<kBlockWidth>(values + block * kBlockWidth));
#endif
  for (; block < blocks; ++block) amaxes[block] = __builtin_bit_cast(float, magnitude_of_block<kBlockWidth>(values + block * kBlockWidth));
}

}  // namespace
}  // namespace ptq::kernels::cpu
