#pragma once
// Rounding to the numbers of a format without making its codes: the same numbers as decode(encode(x)) of kernels/format, in vectors.
// Private to each rows_*.cpp, as lanes.h. x is not NaN.

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {
namespace {

/// Clamped, then the nearest integer, ties to even: 1.5·2²³ has no fraction, adding it makes the processor round.
struct IntegerGrid {
  NativeF32 lowest, highest;
  PTQ_INLINE NativeF32 operator()(NativeF32 x) const {
    const NativeF32 raised = x > lowest ? x : lowest, clamped = raised < highest ? raised : highest, whole = splat(0x1.8p23f);
    return (clamped + whole) - whole;
  }
};

/// A float of few mantissa bits: saturated, then the nearest multiple of the step between its neighbours, ties to even.
struct FloatGrid {
  NativeF32 largest, least_normal;
  NativeU32 mantissa_cut;  ///< what the exponent of a magnitude's power of two grows by, so that its last mantissa bit is the step
  PTQ_INLINE NativeF32 operator()(NativeF32 x) const {
    const NativeU32 bits = __builtin_bit_cast(NativeU32, x);
    const NativeF32 magnitude = __builtin_bit_cast(NativeF32, bits & 0x7fffffffu);
    const NativeF32 clamped = magnitude < largest ? magnitude : largest;
    const NativeU32 power = __builtin_bit_cast(NativeU32, clamped > least_normal ? clamped : least_normal) & 0x7f800000u;
    const NativeF32 magic = __builtin_bit_cast(NativeF32, power + mantissa_cut);
    const NativeF32 rounded = (clamped + magic) - magic;
    return __builtin_bit_cast(NativeF32, __builtin_bit_cast(NativeU32, rounded) | (bits & 0x80000000u));
  }
};
PTQ_INLINE FloatGrid e2m1_grid() { return {splat(6.0f), splat(1.0f), NativeU32{} + (22u << 23)}; }
PTQ_INLINE FloatGrid e4m3_grid() { return {splat(448.0f), splat(0x1p-6f), NativeU32{} + (20u << 23)}; }

/// Calls body with the grid.
template <class Body>
PTQ_INLINE void with_grid(const Rounding& rounding, Body body) {
  switch (rounding.kind) {
    case Rounding::Kind::kInteger:
      body(IntegerGrid{splat(rounding.lowest), splat(rounding.highest)});
      return;
    case Rounding::Kind::kE2M1:
      body(e2m1_grid());
      return;
    case Rounding::Kind::kE4M3:
      body(e4m3_grid());
      return;
  }
}

PTQ_INLINE NativeF32 load_native(const float* from) {
  NativeF32 value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}
PTQ_INLINE void store_native(float* to, NativeF32 value) { __builtin_memcpy(to, &value, sizeof(value)); }
constexpr int kNativeFloats = kNativeBytes / 4;

}  // namespace
}  // namespace ptq::kernels::cpu
