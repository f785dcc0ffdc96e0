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
