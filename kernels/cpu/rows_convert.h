#pragma once
// Loops over elements of f32, bf16 and f16. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {
namespace {

struct F32Reader {
  const float* values;
  PTQ_INLINE float operator[](int64_t i) const { return values[i]; }
};
struct BF16Reader {
  const uint16_t* values;
  PTQ_INLINE float operator[](int64_t i) const { return __builtin_bit_cast(float, static_cast<uint32_t>(values[i]) << 16); }
};
struct F16Reader {
  const uint16_t* values;
  PTQ_INLINE float operator[](int64_t i) const {
    // The half's exponent and mantissa in a float's places are the value times 2⁻¹¹²; only Inf and NaN need their exponent filled up.
    const uint32_t half = values[i], magnitude = (half & 0x7fffu) << 13;
    const uint32_t finite = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) * 0x1p112f);
    const uint32_t bits = (half & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : finite;
    return __builtin_bit_cast(float, bits | (half & 0x8000u) << 16);
  }
};

/// Calls body with the reader of `source`.
template <class Body>
PTQ_INLINE void read_as(const void* in, Source source, Body body) {
  switch (source) {
    case Source::kF32:
      body(F32Reader{static_cast<const float*>(in)});
      return;
    case Source::kBF16:
      body(BF16Reader{static_cast<const uint16_t*>(in)});
      return;
    case Source::kF16:
      body(F16Reader{static_cast<const uint16_t*>(in)});
      return;
  }
}

/// The bits of x rounded to bf16, nearest, ties to even; NaN stays NaN.
PTQ_INLINE uint16_t bf16_bits(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

struct F32Writer {
  float* values;
  PTQ_INLINE void operator()(int64_t i, float x) const { values[i] = x; }
};
struct BF16Writer {
  uint16_t* values;
  PTQ_INLINE void operator()(int64_t i, float x) const { values[i] = bf16_bits(x); }
};

/// Calls body with the writer of bf16 or f32.
template <class Body>
PTQ_INLINE void write_as(void* out, bool to_bf16, Body body) {
  if (to_bf16)
    body(BF16Writer{static_cast<uint16_t*>(out)});
  else
    body(F32Writer{static_cast<float*>(out)});
}

void widen(const void* in, Source source, int64_t count, float* out) {
  read_as(in, source, [&](auto reader) {
    for (int64_t i = 0; i < count; ++i) out[i] = reader[i];
  });
}

void narrow(const float* in, int64_t count, uint16_t* bf16_out) {
  for (int64_t i = 0; i < count; ++i) bf16_out[i] = bf16_bits(in[i]);
}

uint32_t max_magnitude(const void* x, Source source, int64_t count) {
  if (source == Source::kF32) {
    const auto* bits = static_cast<const uint32_t*>(x);
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t magnitude = bits[i] & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
  }
  const auto* bits = static_cast<const uint16_t*>(x);
  uint16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<uint16_t>(bits[i] & 0x7fffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

}  // namespace
}  // namespace ptq::kernels::cpu
