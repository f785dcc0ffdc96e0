#pragma once
// The data sheet of FP8 E4M3. No scales: those belong to the quantizers. Usable from any thread, on host and device.

#include <cstdint>
#include <string_view>

#include "kernels/format/host_device.h"

namespace ptq::kernels {

/// OCP E4M3 ("fn"): sign, 4 exponent bits of bias 7, 3 mantissa bits; largest 448, smallest normal 2⁻⁶, smallest subnormal 2⁻⁹. No
/// infinity; 0x7f and 0xff are NaN.
struct E4M3 {
  static constexpr std::string_view kName = "e4m3";
  static constexpr int kBits = 8;
  static constexpr float kMax = 448.0f;

  /// Clamped to ±448, then the nearest code, ties to even. -0 keeps its sign, NaN becomes 0x7f.
  PTQ_HD static constexpr uint8_t encode(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t clamped = magnitude < kMaxBits ? magnitude : kMaxBits;
    // Normals: cut the float's mantissa to 3 bits, a carry runs into the exponent as it should. Subnormals are multiples of 2⁻⁹, which is
    // the last mantissa bit of 2¹⁴: adding 2¹⁴ makes the processor do the rounding.
    const uint32_t normal = ((clamped + 0x7ffffu + ((clamped >> 20) & 1u)) >> 20) - (120u << 3);
    const uint32_t subnormal = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, clamped) + 0x1p14f) - kBitsOf2Pow14;
    const uint32_t code = (clamped < kMinNormalBits ? subnormal : normal) | ((bits >> 24) & 0x80u);
    return static_cast<uint8_t>(magnitude > 0x7f800000u ? 0x7fu : code);
  }
  PTQ_HD static constexpr float decode(uint8_t code) {
    const uint32_t magnitude = code & 0x7fu;
    const uint32_t normal = (magnitude << 20) + (120u << 23);
    const uint32_t subnormal = __builtin_bit_cast(uint32_t, static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f);
    const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : magnitude < 8u ? subnormal : normal;
    return __builtin_bit_cast(float, bits | (static_cast<uint32_t>(code & 0x80u) << 24));
  }

 private:
  static constexpr uint32_t kMaxBits = 0x43e00000u;        // 448
  static constexpr uint32_t kMinNormalBits = 0x3c800000u;  // 2⁻⁶
  static constexpr uint32_t kBitsOf2Pow14 = 0x46800000u;
};

}  // namespace ptq::kernels
