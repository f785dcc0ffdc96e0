#pragma once
// Decoders of the formats that publishers store weights in. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_convert.h"
#include "kernels/format/e4m3.h"

namespace ptq::kernels::cpu {
namespace {

PTQ_INLINE uint16_t fp8_entry(int magnitude, float scale) { return bf16_bits(E4M3::decode(static_cast<uint8_t>(magnitude)) * scale); }

#if defined(__AVX512BW__)
// 32 codes at a time: the table is four registers of 32 entries, and VPERMI2W looks into two of them.
void make_fp8_table(float scale, uint8_t* table) {
  uint16_t entries[128];
  for (int m = 0; m < 128; ++m) entries[m] = fp8_entry(m, scale);
  __builtin_memcpy(table, entries, kFp8TableBytes);
}

PTQ_INLINE __m512i look_up_32(__m256i codes, const __m512i (&table)[4]) {
  const __m512i index = _mm512_cvtepi8_epi16(codes);  // widened with its sign, which so comes to lie where bf16 has it
  const __m512i low = _mm512_permutex2var_epi16(table[0], index, table[1]), high = _mm512_permutex2var_epi16(table[2], index, table[3]);
  const __m512i magnitude = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(index, _mm512_set1_epi16(64)), low, high);
  return _mm512_xor_si512(magnitude, _mm512_and_si512(index, _mm512_set1_epi16(-0x8000)));
}

void look_up_fp8(const uint8_t* codes, int64_t count, const uint8_t* table, uint16_t* out) {
  __m512i entries[4];
  for (int i = 0; i < 4; ++i) entries[i] = _mm512_loadu_si512(table + 64 * i);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32)
    _mm512_storeu_si512(out + i, look_up_32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i)), entries));
  if (i < count) {
    const auto rest = static_cast<__mmask32>((uint32_t{1} << (count - i)) - 1);
    _mm512_mask_storeu_epi16(out + i, rest, look_up_32(_mm256_maskz_loadu_epi8(rest, codes + i), entries));
  }
}
#elif defined(__AVX2__)
// The table is the lower bytes of all entries, then the upper ones: VPSHUFB looks into 16 bytes.
void make_fp8_table(float scale, uint8_t* table) {
  for (int m = 0; m < 128; ++m) {
    const uint16_t entry = fp8_entry(m, scale);
    table[m] = static_cast<uint8_t>(entry);
    table[128 + m] = static_cast<uint8_t>(entry >> 8);
  }
}

PTQ_INLINE __m256i load_16_bytes_twice(const uint8_t* from) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

void look_up_fp8(const uint8_t* codes, int64_t count, const uint8_t* table, uint16_t* out) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
    const __m256i sign = _mm256_and_si256(code, _mm256_set1_epi8(-0x80)), magnitude = _mm256_xor_si256(code, sign);
    __m256i low = _mm256_setzero_si256(), high = sign;
#pragma GCC unroll 8
    for (int part = 0; part < 8; ++part) {
      // Offsets of 16 and more get their top bit set, where VPSHUFB gives 0: of the eight parts of the table just one answers.
      const __m256i offset = _mm256_sub_epi8(magnitude, _mm256_set1_epi8(static_cast<char>(16 * part)));
      const __m256i index = _mm256_adds_epu8(offset, _mm256_set1_epi8(0x70));
      low = _mm256_or_si256(low, _mm256_shuffle_epi8(load_16_bytes_twice(table + 16 * part), index));
      high = _mm256_xor_si256(high, _mm256_shuffle_epi8(load_16_bytes_twice(table + 128 + 16 * part), index));
    }
    const __m256i even = _mm256_unpacklo_epi8(low, high), odd = _mm256_unpackhi_epi8(low, high);  // groups of 8 codes: 0 and 2, 1 and 3
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i + 16), _mm256_permute2x128_si256(even, odd, 0x31));
  }
  for (; i < count; ++i) {
    const int magnitude = codes[i] & 0x7f, sign = codes[i] & 0x80;
    out[i] = static_cast<uint16_t>((table[magnitude] | table[128 + magnitude] << 8) ^ sign << 8);
  }
}
#else
void make_fp8_table(float scale, uint8_t* table) {
  for (int m = 0; m < 128; ++m) {
    const uint16_t entry = fp8_entry(m, scale);
    __builtin_memcpy(table + 2 * m, &entry, sizeof(entry));
  }
}

void look_up_fp8(const uint8_t* codes, int64_t count, const uint8_t* table, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t entry;
    __builtin_memcpy(&entry, table + 2 * (codes[i] & 0x7f), sizeof(entry));
    out[i] = static_cast<uint16_t>(entry ^ (codes[i] & 0x80) << 8);
  }
}
#endif

/// The bf16 of the 16 codes under an E8M0 scale. Cutting a product's lower half off is exact, even where it is infinite or NaN: there are
/// two significant bits at most.
PTQ_INLINE void make_mxfp4_table(uint8_t scale, uint16_t* table) {
  // 2^(scale - 127): the scale is a float's exponent field, but for the subnormal 2⁻¹²⁷ and E8M0's NaN.
  const uint32_t bits = scale == 0 ? 0x00400000u : scale == 255 ? 0x7fc00000u : static_cast<uint32_t>(scale) << 23;
  constexpr float kValues[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  for (int code = 0; code < 16; ++code)
    table[code] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, kValues[code] * __builtin_bit_cast(float, bits)) >> 16);
}

#if defined(__AVX2__)
/// The 32 codes of a block in order, one per byte.
PTQ_INLINE __m256i unpack_codes(const uint8_t* packed) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)), nibble = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(bytes, nibble), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
  return _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
}
#endif

#if defined(__AVX512BW__)
PTQ_INLINE void look_up_mxfp4(const uint8_t* packed, const uint16_t* table, uint16_t* out) {
  const __m256i entries = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
  const __m512i codes = _mm512_cvtepu8_epi16(unpack_codes(packed));
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(codes, _mm512_castsi256_si512(entries)));
}
#elif defined(__AVX2__)
PTQ_INLINE void look_up_mxfp4(const uint8_t* packed, const uint16_t* table, uint16_t* out) {
  const __m256i entries = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
  const __m256i lower = _mm256_and_si256(entries, _mm256_set1_epi16(255)), upper = _mm256_srli_epi16(entries, 8);
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(lower, upper), 0xd8);  // 16 lower bytes, then 16 upper ones
  const __m256i codes = _mm256_permute4x64_epi64(unpack_codes(packed), 0xd8);  // so that unpacking in halves puts them in order
  const __m256i low = _mm256_shuffle_epi8(_mm256_permute2x128_si256(bytes, bytes, 0x00), codes);
  const __m256i high = _mm256_shuffle_epi8(_mm256_permute2x128_si256(bytes, bytes, 0x11), codes);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_unpacklo_epi8(low, high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_unpackhi_epi8(low, high));
}
#else
PTQ_INLINE void look_up_mxfp4(const uint8_t* packed, const uint16_t* table, uint16_t* out) {
  for (int i = 0; i < 16; ++i) {
    out[2 * i] = table[packed[i] & 15];
    out[2 * i + 1] = table[packed[i] >> 4];
  }
}
#endif

void decode_mxfp4(const uint8_t* packed, const uint8_t* scales, int64_t stride, int64_t blocks, uint16_t* out) {
  for (int64_t block = 0; block < blocks; ++block) {
    uint16_t table[16];
    make_mxfp4_table(scales[block * stride], table);
    look_up_mxfp4(packed + 16 * block * stride, table, out + 32 * block);
  }
}

}  // namespace
}  // namespace ptq::kernels::cpu
