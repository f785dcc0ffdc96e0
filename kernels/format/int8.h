#pragma once
// The data sheet of symmetric INT8. No scales: those belong to the quantizers.

#include <cstdint>
#include <string_view>

#include "kernels/format/host_device.h"

namespace ptq::kernels {

/// Two's complement of 8 bits: -128 … 127. Scales are amax/127, so -128 appears only where a scale was clipped.
struct INT8 {
  static constexpr std::string_view kName = "int8";
  static constexpr int kBits = 8;
  static constexpr float kMax = 127.0f, kMin = -128.0f;

  /// Clamped to -128 … 127, then the nearest integer, ties to even. x is not NaN.
  PTQ_HD static constexpr int8_t encode(float x) {
    const float raised = x > kMin ? x : kMin, clamped = raised < kMax ? raised : kMax;
    // The last mantissa bit of 1.5·2²³ is 1: adding it makes the processor round, and leaves the integer in the low bits.
    return static_cast<int8_t>(static_cast<uint8_t>(__builtin_bit_cast(uint32_t, clamped + 0x1.8p23f)));
  }
  PTQ_HD static constexpr float decode(int8_t code) { return static_cast<float>(code); }
};

}  // namespace ptq::kernels
