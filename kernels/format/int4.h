#pragma once
// The data sheet of symmetric INT4, held one code per byte. No scales and no packing: those belong to the quantizers.

#include <cstdint>
#include <string_view>

#include "kernels/format/host_device.h"

namespace ptq::kernels {

/// Two's complement of 4 bits: -8 … 7. Scales are amax/7, so -8 appears only where a scale was clipped.
struct INT4 {
  static constexpr std::string_view kName = "int4";
  static constexpr int kBits = 4;
  static constexpr float kMax = 7.0f, kMin = -8.0f;

  /// Clamped to -8 … 7, then the nearest integer, ties to even. x is not NaN.
  PTQ_HD static constexpr int8_t encode(float x) {
    const float raised = x > kMin ? x : kMin, clamped = raised < kMax ? raised : kMax;
    return static_cast<int8_t>(static_cast<uint8_t>(__builtin_bit_cast(uint32_t, clamped + 0x1.8p23f)));  // as INT8
  }
  PTQ_HD static constexpr float decode(int8_t code) { return static_cast<float>(code); }
};

}  // namespace ptq::kernels
