#pragma once
// E4M3 for whole rows: the same codes as kernels/format/e4m3.h. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_convert.h"
#include "kernels/format/e4m3.h"

namespace ptq::kernels::cpu {
namespace {

#if defined(__AVX512DQ__)
PTQ_INLINE __m512 load_16(F32Reader from, int64_t i) { return _mm512_loadu_ps(from.values + i); }
PTQ_INLINE __m512 load_16(BF16Reader from, int64_t i) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from.values + i));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
PTQ_INLINE __m512 load_16(F16Reader from, int64_t i) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from.values + i)));
}

/// As E4M3::encode: the processor rounds where it adds a power of two whose last mantissa bit is the step between codes.
PTQ_INLINE __m128i encode_16_e4m3(__m512 x) {
  const __m512 magnitude = _mm512_range_ps(x, _mm512_set1_ps(E4M3::kMax), 0b1010);  // the lesser magnitude, its sign cleared
  // Steps are 2⁻³ of the power of two below a magnitude, and below 2⁻⁶ as there. 152 steps more cancel, modulo 256, what the sum's exponent
  // brings to the code when it is added in its place: 8·(exponent + 20 + 127) instead of 8·(exponent + 6).
  const __m512i power =
      _mm512_and_si512(_mm512_castps_si512(_mm512_max_ps(magnitude, _mm512_set1_ps(0x1p-6f))), _mm512_set1_epi32(0x7f800000));
  const __m512 magic = _mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_set1_epi32((20 << 23) + 152)));
  const __m512i sum = _mm512_castps_si512(_mm512_add_ps(magnitude, magic)), code = _mm512_add_epi32(sum, _mm512_srli_epi32(sum, 20));
  const __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(x), 24), low = _mm512_set1_epi32(0x7f);
  const __m512i with_sign = _mm512_ternarylogic_epi32(low, code, sign, 0xca);  // low ? code : sign
  return _mm512_cvtepi32_epi8(_mm512_mask_mov_epi32(with_sign, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), low));
}
#endif

/// codes[i] = E4M3::encode(scaled(from[i])). `scaled` is called with a float or a vector of them.
template <class Reader, class Scaled>
PTQ_INLINE void encode_e4m3(Reader from, int64_t count, uint8_t* codes, Scaled scaled) {
  int64_t i = 0;
#if defined(__AVX512DQ__)
  for (; i + 16 <= count; i += 16) {
    const NativeF32 x = __builtin_bit_cast(NativeF32, load_16(from, i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), encode_16_e4m3(__builtin_bit_cast(__m512, scaled(x))));
  }
#endif
  for (; i < count; ++i) codes[i] = E4M3::encode(scaled(from[i]));
}

}  // namespace
}  // namespace ptq::kernels::cpu
