#pragma once
// The data sheet of E8M0, the scale of the microscaling (MX) formats. Which power of two a block gets is the quantizers' rule.

#include <cstdint>
#include <string_view>

#include "kernels/format/host_device.h"

namespace ptq::kernels {

/// OCP E8M0: eight exponent bits of bias 127 and nothing else; 2⁻¹²⁷ … 2¹²⁷. No zero, no sign, no infinity; 255 is NaN.
struct E8M0 {
  static constexpr std::string_view kName = "e8m0";
  static constexpr int kBits = 8;
  static constexpr float kMax = 0x1p127f;

  /// The smallest code whose value is at least x >= 0; 0 and all of (0, 2⁻¹²⁷] have code 0, infinity 254, NaN 255. From the bits: a float
  /// logarithm is off by one beside a power of two.
  PTQ_HD static constexpr uint8_t encode(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    const uint32_t rounded_up = (bits + 0x7fffffu) >> 23;  // a subnormal above 2⁻¹²⁷ becomes 1, as it should
    const uint32_t code = bits <= kBitsOf2PowMinus127 ? 0u : rounded_up;
    return static_cast<uint8_t>(bits > 0x7f800000u ? 255u : code < 254u ? code : 254u);
  }
  PTQ_HD static constexpr float decode(uint8_t code) {
    const uint32_t normal = static_cast<uint32_t>(code) << 23;
    return __builtin_bit_cast(float, code == 0 ? kBitsOf2PowMinus127 : code == 255 ? 0x7fc00000u : normal);
  }
  /// The code of 1 / decode(code); NaN's is NaN's. Multiplying by a power of two is dividing by the other, rounding included.
  PTQ_HD static constexpr uint8_t reciprocal(uint8_t code) { return static_cast<uint8_t>(254u - code); }

 private:
  static constexpr uint32_t kBitsOf2PowMinus127 = 0x00400000u;
};

}  // namespace ptq::kernels
