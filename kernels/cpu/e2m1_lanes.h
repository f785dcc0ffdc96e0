#pragma once
// E2M1 for whole vectors: the same codes as kernels/format/e2m1.h, 16 columns (one NVFP4 block) at a time. Private to each file, as
// lanes.h.

#include "kernels/cpu/lanes.h"

namespace ptq::kernels::cpu {
namespace {

/// The codes 0..15 of 16 columns, each in 32 bits.
struct BlockCodes {
  NativeU32 part[kParts];
};

#if defined(__AVX512DQ__)
/// min(|x|, 6), and twice the step of its code's neighbourhood as the exponent bits of a float: 1 below 2, 2 below 4, 4 from there on.
struct E2M1Steps {
  __m512 magnitude;
  __m512i twice_step;
  PTQ_INLINE explicit E2M1Steps(__m512 x) {
    magnitude = _mm512_range_ps(x, _mm512_set1_ps(6.0f), 0b1010);  // the lesser magnitude, its sign cleared
    twice_step = _mm512_and_si512(_mm512_castps_si512(_mm512_max_ps(magnitude, _mm512_set1_ps(1.0f))), _mm512_set1_epi32(0x7f800000));
  }
  /// 2²²·twice_step, whose last mantissa bit is the step, and 6 steps more: with those, the sum with a magnitude has the code in its low
  /// three bits once its exponent is added twice, see code_of.
  PTQ_INLINE __m512 magic() const { return _mm512_castsi512_ps(_mm512_add_epi32(twice_step, _mm512_set1_epi32((22 << 23) + 6))); }
};
/// The code of magic() + magnitude, with bit 31 of `sign`. Steps count from 0, 2 and 4 in the three neighbourhoods: twice the exponent.
PTQ_INLINE NativeU32 code_of(__m512 sum, __m512i sign) {
  const __m512i bits = _mm512_castps_si512(sum), code = _mm512_add_epi32(bits, _mm512_srli_epi32(bits, 22));
  const __m512i low = _mm512_set1_epi32(7);
  return __builtin_bit_cast(NativeU32, _mm512_ternarylogic_epi32(low, code, _mm512_srli_epi32(sign, 28), 0xca));  // low ? code : sign
}

/// As E2M1::encode.
PTQ_INLINE NativeU32 encode_e2m1(NativeF32 x) {
  const __m512 value = __builtin_bit_cast(__m512, x);
  const E2M1Steps steps(value);
  // -0 is not below 0 and has code 0: of two zeros, VMINPS gives the second.
  return code_of(_mm512_add_ps(steps.magnitude, steps.magic()), _mm512_castps_si512(_mm512_min_ps(value, _mm512_setzero_ps())));
}

/// As E2M1::encode_ties_to_zero: a magnitude less half a step, rounded up.
PTQ_INLINE NativeU32 encode_e2m1_ties_to_zero(NativeF32 x) {
  const __m512 value = __builtin_bit_cast(__m512, x);
  const E2M1Steps steps(value);
  const __m512 half_step = _mm512_castsi512_ps(_mm512_sub_epi32(steps.twice_step, _mm512_set1_epi32(2 << 23)));
  const __m512 lowered = _mm512_sub_ps(steps.magnitude, half_step);  // inexact only far below half the least step, where all have code 0
  const __m512 sum = _mm512_add_round_ps(lowered, steps.magic(), _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
  // What is not above 0 becomes 0 here, and the bits of 0 alone turn negative by subtracting 1.
  const __m512i positive = _mm512_castps_si512(_mm512_max_ps(value, _mm512_setzero_ps()));
  return code_of(sum, _mm512_sub_epi32(positive, _mm512_set1_epi32(1)));
}
#else
/// As E2M1::encode: normals by rounding the mantissa to one bit, magnitudes below 1 as multiples of 0.5, the last mantissa bit of 2²².
PTQ_INLINE NativeU32 encode_e2m1(NativeF32 x) {
  const NativeU32 bits = __builtin_bit_cast(NativeU32, x), magnitude = bits & 0x7fffffffu;
  const NativeU32 largest = NativeU32{} + 0x40c00000u;  // 6
  const NativeU32 clamped = magnitude < largest ? magnitude : largest;
  const NativeU32 normal = ((clamped + 0x1fffffu + ((clamped >> 22) & 1u)) >> 22) - (126u << 1);
  const NativeU32 half_steps = __builtin_bit_cast(NativeU32, __builtin_bit_cast(NativeF32, clamped) + 0x1p22f) - 0x4a800000u;
  const NativeU32 code = clamped < NativeU32{} + 0x3f800000u ? half_steps : normal;
  // -0 is not below 0 and has code 0.
  return code | (x < NativeF32{} ? NativeU32{} + 8u : NativeU32{});
}

/// As E2M1::encode_ties_to_zero: one less than half a step lets no tie through.
PTQ_INLINE NativeU32 encode_e2m1_ties_to_zero(NativeF32 x) {
  const NativeU32 bits = __builtin_bit_cast(NativeU32, x), magnitude = bits & 0x7fffffffu;
  const NativeU32 largest = NativeU32{} + 0x40c00000u;  // 6
  const NativeU32 clamped = magnitude < largest ? magnitude : largest;
  const NativeU32 normal = ((clamped + 0x1fffffu) >> 22) - (126u << 1);
  // Comparisons give all ones, which is -1. Magnitudes are compared as the integers that order them alike.
  const NativeU32 half_steps = NativeU32{} - __builtin_bit_cast(NativeU32, clamped > NativeU32{} + 0x3e800000u) -
                               __builtin_bit_cast(NativeU32, clamped > NativeU32{} + 0x3f400000u);
  const NativeU32 code = clamped < NativeU32{} + 0x3f800000u ? half_steps : normal;
  return code | (x > NativeF32{} ? NativeU32{} : NativeU32{} + 8u);
}
#endif

/// As E2M1::decode.
PTQ_INLINE NativeF32 decode_e2m1(NativeU32 code) {
  const NativeU32 magnitude = code & 7u, half = NativeU32{} + 0x3f000000u;  // code 1 is 0.5
  const NativeU32 bits = magnitude > NativeU32{} + 1u ? (magnitude << 22) + half : (magnitude != NativeU32{} ? half : NativeU32{});
  return __builtin_bit_cast(NativeF32, bits | (code & 8u) << 28);
}

PTQ_INLINE BlockCodes encode_block(const float* values, float scale) {
  const Lanes<float> block = Lanes<float>::load(values);
  BlockCodes codes;
  for (int p = 0; p < kParts; ++p) codes.part[p] = encode_e2m1(block.part[p] / splat(scale));
  return codes;
}

PTQ_INLINE void decode_block(const BlockCodes& codes, float scale, float* values) {
  Lanes<float> block;
  for (int p = 0; p < kParts; ++p) block.part[p] = decode_e2m1(codes.part[p]) * splat(scale);
  block.store(values);
}

constexpr int kPairs = 8 / kParts;  ///< pairs of columns, which are bytes, of one native vector
typedef uint8_t PairBytes __attribute__((vector_size(kPairs)));

/// Even columns to low nibbles.
PTQ_INLINE void pack_block(const BlockCodes& codes, uint8_t* packed) {
  for (int p = 0; p < kParts; ++p) {
    const NativeU64 pairs = __builtin_bit_cast(NativeU64, codes.part[p]);  // even code in the low half, odd one 32 bits above
    const PairBytes bytes = __builtin_convertvector(pairs | pairs >> 28, PairBytes);
    __builtin_memcpy(packed + p * kPairs, &bytes, kPairs);
  }
}

PTQ_INLINE BlockCodes unpack_block(const uint8_t* packed) {
  BlockCodes codes;
  for (int p = 0; p < kParts; ++p) {
    PairBytes bytes;
    __builtin_memcpy(&bytes, packed + p * kPairs, kPairs);
    const NativeU64 pairs = __builtin_convertvector(bytes, NativeU64);
    codes.part[p] = __builtin_bit_cast(NativeU32, pairs | pairs << 28) & 15u;
  }
  return codes;
}

}  // namespace
}  // namespace ptq::kernels::cpu
