#pragma once
// Reading the vectors of tests/golden: bits are hex strings there.

#include <bit>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace ptq::test {

inline nlohmann::json golden(const std::string& name) {
  std::ifstream file(std::string(PTQ_SOURCE_DIR) + "/tests/golden/" + name);
  return nlohmann::json::parse(file);
}
inline uint32_t hex(const std::string& digits) { return static_cast<uint32_t>(std::stoul(digits, nullptr, 16)); }
inline float f32_of(const std::string& digits) { return std::bit_cast<float>(hex(digits)); }
/// "0a1b" to {0x0a, 0x1b}.
inline std::vector<uint8_t> bytes_of(const std::string& digits) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) bytes.push_back(static_cast<uint8_t>(hex(digits.substr(i, 2))));
  return bytes;
}
/// A list of hex bits as a tensor [rows, columns]: 4 digits are bf16, 8 are f32.
inline Tensor tensor_of_bits(const nlohmann::json& list, int64_t rows) {
  const bool is_bf16 = list[0].get<std::string>().size() == 4;
  Tensor tensor = Tensor::empty({rows, static_cast<int64_t>(list.size()) / rows}, is_bf16 ? DType::kBF16 : DType::kF32);
  for (size_t i = 0; i < list.size(); ++i) {
    if (is_bf16)
      tensor.data<BF16>()[i] = {static_cast<uint16_t>(hex(list[i]))};
    else
      tensor.data<float>()[i] = f32_of(list[i]);
  }
  return tensor;
}

}  // namespace ptq::test
