#pragma once
// Element types of tensors, as safetensors names them, and bf16 conversions. Knows widths, not meanings.

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ptq {

enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kF8E4M3, kF8E5M2, kF8E8M0, kI64, kU64, kI32, kU32, kI16, kU16, kI8, kU8, kBool };

/// Bytes of one element.
constexpr int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
    case DType::kU64:
      return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
    case DType::kU16:
      return 2;
    default:
      return 1;
  }
}

/// The safetensors name, e.g. "BF16" or "F8_E4M3".
std::string_view dtype_name(DType dtype);
/// The dtype of a safetensors name; nothing for names this project has no use for (F4, F6_*, C64, ...).
std::optional<DType> dtype_from_name(std::string_view name);

/// A bfloat16 in memory: the upper half of a float32.
struct BF16 {
  uint16_t bits;
};
/// An IEEE half in memory.
struct F16 {
  uint16_t bits;
};

inline float to_float(BF16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
/// Nearest, ties to even; NaN stays NaN.
inline BF16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
inline float round_to_bf16(float x) { return to_float(to_bf16(x)); }
float to_float(F16 x);
/// Nearest, ties to even; beyond the largest finite one Inf; NaN stays NaN.
F16 to_f16(float x);

}  // namespace ptq
