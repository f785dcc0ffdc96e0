#include "kernels/core/dtype.h"

#include <array>
#include <utility>

namespace ptq {

namespace {
constexpr std::array<std::pair<DType, std::string_view>, 16> kNames{{{DType::kF64, "F64"},
                                                                     {DType::kF32, "F32"},
                                                                     {DType::kF16, "F16"},
                                                                     {DType::kBF16, "BF16"},
                                                                     {DType::kF8E4M3, "F8_E4M3"},
                                                                     {DType::kF8E5M2, "F8_E5M2"},
                                                                     {DType::kF8E8M0, "F8_E8M0"},
                                                                     {DType::kI64, "I64"},
                                                                     {DType::kU64, "U64"},
                                                                     {DType::kI32, "I32"},
                                                                     {DType::kU32, "U32"},
                                                                     {DType::kI16, "I16"},
                                                                     {DType::kU16, "U16"},
                                                                     {DType::kI8, "I8"},
                                                                     {DType::kU8, "U8"},
                                                                     {DType::kBool, "BOOL"}}};
}  // namespace

std::string_view dtype_name(DType dtype) {
  for (const auto& [value, name] : kNames)
    if (value == dtype) return name;
  return "?";
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const auto& [value, text] : kNames)
    if (text == name) return value;
  return std::nullopt;
}

float to_float(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu, mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

F16 to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const auto with_sign = [sign](uint32_t half) { return F16{static_cast<uint16_t>(sign | half)}; };
  if (magnitude > 0x7f800000u) return with_sign(0x7e00u);
  if (magnitude >= 0x477ff000u) return with_sign(0x7c00u);  // from 65520 on
  // Below the least normal half, adding 1/2 leaves the multiple of 2⁻²⁴ in the low bits of the sum.
  if (magnitude < 0x38800000u) return with_sign(std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u);
  return with_sign((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

}  // namespace ptq
