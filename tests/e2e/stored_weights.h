#pragma once
// Quantized weights as a server would read them from the files, by the published layouts and on plain loops: what a test holds beside the
// source's weights. Reads nothing through the program.

#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "tests/support/model_files.h"
#include "tests/support/reference_formats.h"

namespace ptq::test {

/// A matrix as numbers, and how it lay in the file.
struct StoredWeight {
  std::string format;  ///< "fp8", "fp8 rows", "fp8 blocks", "int8", "int4", "nvfp4", "mxfp8", "mxfp4"
  int64_t rows = 0, columns = 0;
  std::vector<double> values;
};

inline double e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}
inline double e2m1_value(int code) {
  constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -kMagnitudes[code & 7] : kMagnitudes[code & 7];
}

/// The weight of a module, or nothing where it is not quantized. 2-D weights alone.
inline std::optional<StoredWeight> stored_weight(const StoredTensors& tensors, const std::string& module) {
  const auto find = [&](const char* suffix) {
    const auto found = tensors.find(module + suffix);
    return found == tensors.end() ? nullptr : &found->second;
  };
  const StoredTensor *plain = find(".weight"), *packed = find(".weight_packed"), *scale = find(".weight_scale");
  if (!scale) scale = find(".weight_scale_inv");
  const StoredTensor* weight = plain ? plain : packed;
  if (!weight || !scale || weight->shape.size() != 2) return std::nullopt;
  const auto byte = [&](const StoredTensor& tensor, int64_t i) { return static_cast<uint8_t>(tensor.bytes[static_cast<size_t>(i)]); };
  StoredWeight out;
  out.rows = weight->shape[0];
  out.columns = weight->shape[1];
  // code(r, c) of its grid, times step(r, c).
  std::function<double(int64_t, int64_t)> code, step;
  std::vector<double> scales;
  if (scale->dtype == "F32" || scale->dtype == "BF16") scales = scale->values();
  const auto e8m0 = [&](int64_t group) {
    return [&, group](int64_t r, int64_t c) { return std::ldexp(1.0, byte(*scale, r * (out.columns / group) + c / group) - 127); };
  };
  if (weight->dtype == "F8_E4M3") {
    code = [&](int64_t r, int64_t c) { return e4m3_value(byte(*weight, r * out.columns + c)); };
    const int64_t across = (out.columns + 127) / 128;
    if (scale->dtype == "U8") {
      out.format = "mxfp8";
      step = e8m0(32);
    } else if (scales.size() == 1) {
      out.format = "fp8";
      step = [&](int64_t, int64_t) { return scales[0]; };
    } else if (static_cast<int64_t>(scales.size()) == out.rows && (scale->shape.size() == 1 || scale->shape[1] == 1) &&
               scale->shape.size() < 4) {
      out.format = "fp8 rows";
      step = [&](int64_t r, int64_t) { return scales[static_cast<size_t>(r)]; };
    } else {
      out.format = "fp8 blocks";
      step = [&, across](int64_t r, int64_t c) { return scales[static_cast<size_t>(r / 128 * across + c / 128)]; };
    }
  } else if (weight->dtype == "I8") {
    out.format = "int8";
    code = [&](int64_t r, int64_t c) { return static_cast<int8_t>(byte(*weight, r * out.columns + c)); };
    step = [&](int64_t r, int64_t) { return scales[static_cast<size_t>(r)]; };
  } else if (weight->dtype == "I32") {  // words of compressed-tensors
    const std::vector<double> shape = find(".weight_shape")->values();
    const int64_t words = out.columns;
    out.columns = static_cast<int64_t>(shape[1]);
    const int bits = words * 8 == out.columns ? 4 : 8;
    out.format = bits == 4 ? "int4" : "int8";
    code = [&, bits, words](int64_t r, int64_t c) -> double {
      const int64_t bit = c * bits;
      uint32_t word = 0;
      std::memcpy(&word, weight->bytes.data() + (r * words + bit / 32) * 4, 4);
      return static_cast<double>(word >> (bit % 32) & ((1U << bits) - 1U)) - (1 << (bits - 1));
    };
    const int64_t group = out.columns * out.rows / static_cast<int64_t>(scales.size());
    step = [&, group](int64_t r, int64_t c) { return scales[static_cast<size_t>((r * out.columns + c) / group)]; };
  } else if (scale->dtype == "F32") {  // ModelOpt's INT4: two rows to a byte
    out.format = "int4";
    out.rows *= 2;
    code = [&](int64_t r, int64_t c) -> double {
      const int nibble = byte(*weight, r / 2 * out.columns + c) >> (r % 2 * 4) & 15;
      return nibble < 8 ? nibble : nibble - 16;
    };
    const int64_t group = out.columns * out.rows / static_cast<int64_t>(scales.size());
    step = [&, group](int64_t r, int64_t c) { return scales[static_cast<size_t>((r * out.columns + c) / group)]; };
  } else {
    out.columns *= 2;
    code = [&](int64_t r, int64_t c) { return e2m1_value(byte(*weight, (r * out.columns + c) / 2) >> (c % 2 * 4) & 15); };
    if (scale->dtype == "U8") {
      out.format = "mxfp4";
      step = e8m0(32);
    } else {
      out.format = "nvfp4";
      const StoredTensor *second = find(".weight_scale_2"), *global = find(".weight_global_scale");
      const double factor = second ? static_cast<double>(second->scalar()) : 1.0 / global->values()[0];
      step = [&, factor](int64_t r, int64_t c) { return e4m3_value(byte(*scale, r * (out.columns / 16) + c / 16)) * factor; };
    }
  }
  for (int64_t r = 0; r < out.rows; ++r)
    for (int64_t c = 0; c < out.columns; ++c) out.values.push_back(code(r, c) * step(r, c));
  return out;
}

/// ‖a - b‖ / ‖b‖; with `fitted`, of the factors on rows and columns of b that make it least: what folds of smoothing are.
inline double relative_error(const StoredWeight& stored, std::vector<double> source, bool fitted) {
  const std::vector<double>& a = stored.values;
  const auto fit = [&](int64_t lines, int64_t along, int64_t line_step, int64_t step) {
    for (int64_t l = 0; l < lines; ++l) {
      double dot = 0, square = 0;
      for (int64_t i = 0; i < along; ++i) {
        const auto at = static_cast<size_t>(l * line_step + i * step);
        dot += a[at] * source[at];
        square += source[at] * source[at];
      }
      for (int64_t i = 0; square > 0 && i < along; ++i) source[static_cast<size_t>(l * line_step + i * step)] *= dot / square;
    }
  };
  for (int round = 0; fitted && round < 8; ++round) {
    fit(stored.columns, stored.rows, 1, stored.columns);
    fit(stored.rows, stored.columns, stored.columns, 1);
  }
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - source[i]) * (a[i] - source[i]);
    norm += source[i] * source[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace ptq::test
