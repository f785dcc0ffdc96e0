#include "tests/support/reference_formats.h"

#include <algorithm>
#include <cmath>

#include "tests/support/reference_ops.h"

namespace ptq::test {

namespace {

/// The code of the nearest of `count` ascending magnitudes.
template <class ValueOf>
uint8_t nearest(float magnitude, int count, Ties ties, ValueOf value_of) {
  int best = 0;
  for (int code = 1; code < count; ++code) {
    const double here = std::fabs(static_cast<double>(magnitude) - static_cast<double>(value_of(static_cast<uint8_t>(code))));
    const double before = std::fabs(static_cast<double>(magnitude) - static_cast<double>(value_of(static_cast<uint8_t>(best))));
    if (here < before || (here == before && ties == Ties::kEven && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best);
}

}  // namespace

uint8_t nearest_e4m3(float x) {
  const uint8_t code = nearest(std::min(std::fabs(x), 448.0f), 0x7f, Ties::kEven, e4m3_value);
  return static_cast<uint8_t>(code | (std::signbit(x) ? 0x80 : 0));
}
uint8_t nearest_e2m1(float x, Ties ties) {
  const uint8_t code = nearest(std::min(std::fabs(x), 6.0f), 8, ties, e2m1_value);
  return static_cast<uint8_t>(code | (x < 0 || (x == 0 && ties == Ties::kTowardZero) ? 8 : 0));
}
int nearest_integer(float x, int lowest, int highest) {
  return static_cast<int>(std::nearbyint(std::clamp(static_cast<double>(x), static_cast<double>(lowest), static_cast<double>(highest))));
}
uint8_t least_e8m0(float x) {
  uint8_t code = 0;
  while (code < 254 && e8m0_value(code) < x) ++code;
  return code;
}
float e8m0_value(uint8_t code) { return std::ldexp(1.0f, code - 127); }

Tensor awkward_weights(DType dtype, int64_t rows, int64_t columns) {
  std::vector<float> values = values_of(random_tensor({rows, columns}, DType::kF32, 21, 0.02f));
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t block = i / 16;
    if (block % 11 == 1) values[i] = i % 3 ? 0.0f : -0.0f;
    if (block % 11 == 2) values[i] *= 1e-38f;
    if (block % 11 == 3) values[i] *= 1e-4f;
    if (block % 11 == 4) values[i] = static_cast<float>(static_cast<int>(i % 25) - 12) * 0.125f;  // ties once the scale is 0.5, 1, ...
    if (block % 11 == 5) values[i] *= 1e3f;
    if (i % 37 == 0) values[i] = -0.0f;
  }
  return tensor_of(values, {rows, columns}, dtype);
}

std::vector<uint8_t> raw_bytes(const Tensor& tensor) {
  const auto* from = reinterpret_cast<const uint8_t*>(tensor.raw());
  return {from, from + tensor.bytes()};
}

std::vector<float> block_amaxes(const Tensor& x, const kernels::ScaleBlock& block) {
  const std::vector<float> values = values_of(x);
  const int64_t columns = x.dim(1), across = (columns + block.columns - 1) / block.columns;
  std::vector<float> amaxes(static_cast<size_t>((x.dim(0) + block.rows - 1) / block.rows * across), 0.0f);
  for (int64_t i = 0; i < x.numel(); ++i) {
    float& amax = amaxes[static_cast<size_t>(i / columns / block.rows * across + i % columns / block.columns)];
    amax = std::max(amax, std::fabs(values[static_cast<size_t>(i)]));
  }
  return amaxes;
}

std::vector<float> scales_of(const std::vector<float>& amaxes, float format_max) {
  std::vector<float> scales;
  for (const float amax : amaxes) scales.push_back(amax == 0 ? 1.0f : std::max(amax, 0x1p-126f) / format_max);
  return scales;
}

float largest(Element element) { return element == Element::kE4M3 ? 448.0f : element == Element::kInt8 ? 127.0f : 7.0f; }

Quantized quantize_blocks(const Tensor& w, const std::vector<float>& scales, const kernels::ScaleBlock& block, Element element) {
  const std::vector<float> values = values_of(w);
  const int64_t columns = w.dim(1), across = (columns + block.columns - 1) / block.columns;
  Quantized result;
  for (int64_t i = 0; i < w.numel(); ++i) {
    const float scale = scales[static_cast<size_t>(i / columns / block.rows * across + i % columns / block.columns)];
    const float quotient = values[static_cast<size_t>(i)] / scale;
    if (element == Element::kE4M3) {
      result.codes.push_back(nearest_e4m3(quotient));
      result.values.push_back(e4m3_value(result.codes.back()) * scale);
      continue;
    }
    const int code = element == Element::kInt8 ? nearest_integer(quotient, -128, 127) : nearest_integer(quotient, -8, 7);
    result.codes.push_back(static_cast<uint8_t>(code));
    result.values.push_back(static_cast<float>(code) * scale);
  }
  return result;
}

namespace {

template <class Encode, class Decode>
QuantizedMx quantize_mx(const Tensor& w, float format_max, Encode encode, Decode decode) {
  const std::vector<float> values = values_of(w);
  QuantizedMx result;
  for (const float amax : block_amaxes(w.reshaped({w.numel() / 32, 32}), {.rows = 1, .columns = 32}))
    result.scales.push_back(least_e8m0(amax / format_max));
  for (size_t i = 0; i < values.size(); ++i) {
    const float scale = e8m0_value(result.scales[i / 32]);
    result.codes.push_back(encode(values[i] / scale));
    result.values.push_back(decode(result.codes.back()) * scale);
  }
  return result;
}

}  // namespace

QuantizedMx quantize_mxfp8(const Tensor& w) { return quantize_mx(w, 448.0f, nearest_e4m3, e4m3_value); }
QuantizedMx quantize_mxfp4(const Tensor& w, Ties ties) {
  return quantize_mx(
      w, 6.0f, [ties](float x) { return nearest_e2m1(x, ties); }, e2m1_value);
}

std::vector<uint8_t> pack_nibbles(const std::vector<uint8_t>& codes) {
  std::vector<uint8_t> packed;
  for (size_t i = 0; i + 1 < codes.size(); i += 2) packed.push_back(static_cast<uint8_t>((codes[i] & 15) | (codes[i + 1] & 15) << 4));
  return packed;
}

}  // namespace ptq::test
