#pragma once
// The data sheet of FP4 E2M1 with the roundings of NVFP4 and of MXFP4 weights. No scales and no packing: those belong to the quantizers.

#include <cstdint>
#include <string_view>

#include "kernels/format/host_device.h"

namespace ptq::kernels {

/// OCP E2M1 (FP4): sign, 2 exponent bits, 1 mantissa bit; ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}. No infinity, no NaN.
struct E2M1 {
  static constexpr std::string_view kName = "e2m1";
  static constexpr int kBits = 4;
  static constexpr float kMax = 6.0f;

  /// Nearest code, ties to even. |x| > kMax saturates; -0 becomes code 0, a negative that rounds to zero code 8. x is not NaN.
  PTQ_HD static constexpr uint8_t encode(float x) {
    const float a = x < 0 ? -x : x;  // at a tie, > keeps the lower code and >= takes the upper: always the even one
    const int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return static_cast<uint8_t>(code | (x < 0 ? 0b1000 : 0));
  }
  /// As exporters write MXFP4 weights: nearest code, ties toward zero; both zeros, and a negative that rounds to zero, have code 8.
  PTQ_HD static constexpr uint8_t encode_ties_to_zero(float x) {
    const float a = x < 0 ? -x : x;
    const int code = (a > 0.25f) + (a > 0.75f) + (a > 1.25f) + (a > 1.75f) + (a > 2.5f) + (a > 3.5f) + (a > 5.0f);
    return static_cast<uint8_t>(code | (x <= 0 ? 0b1000 : 0));
  }
  /// The low four bits of `code`. Code 8 is -0.
  PTQ_HD static constexpr float decode(uint8_t code) {
    constexpr uint64_t kDoubled = 0x0c08060403020100u;  // byte m is twice the magnitude of code m
    const float magnitude = static_cast<float>(static_cast<int32_t>((kDoubled >> (8 * (code & 7))) & 0xffu)) * 0.5f;
    return code & 8 ? -magnitude : magnitude;
  }
};

}  // namespace ptq::kernels
