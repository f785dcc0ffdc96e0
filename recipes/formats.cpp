#include "recipes/formats.h"

#include <algorithm>
#include <array>

namespace ptq::recipes {

namespace {

const std::array<FormatInfo, 4> kFormats{{
    {Format::kNone, "none", "", false, false, 0, 16},
    {Format::kFp8, "fp8", "FP8", true, false, 0, 8},
    {Format::kNvfp4, "nvfp4", "NVFP4", true, true, 16, 4.5},
    {Format::kNvfp4WeightOnly, "w4a16_nvfp4", "W4A16_NVFP4", false, true, 16, 4.5},
}};

const std::array<Preset, 3> kPresets{{{"none", "none", "minmax"}, {"fp8", "fp8", "minmax"}, {"nvfp4", "nvfp4", "minmax"}}};

/// Names of the public contract that a later version brings.
const std::vector<std::string> kLater{"fp8_pb_wo", "fp8_pc_pt", "int8_sq", "int8_wo", "int4_awq",   "w4a8_awq",
                                      "nvfp4_awq", "mxfp8",     "mxfp4",   "auto",    "w4a16_nvfp4"};

Error unknown(const std::string& what, const std::string& name, const std::string& where, const std::string& list) {
  const bool later = std::find(kLater.begin(), kLater.end(), name) != kLater.end();
  return user_error(what + " '" + name + "' is " + (later ? "not supported by this version" : "unknown"), where, "use one of: " + list);
}

}  // namespace

const FormatInfo& info(Format format) { return kFormats[static_cast<size_t>(format)]; }

const FormatInfo& find_format(const std::string& name, const std::string& where) {
  std::string list;
  for (const auto& format : kFormats) {
    if (format.name == name) return format;
    list += (list.empty() ? "" : ", ") + format.name;
  }
  throw unknown("number format", name, where, list);
}

Preset find_preset(const std::string& name, const std::string& where) {
  std::string list;
  for (const auto& preset : kPresets) {
    if (preset.name == name) return preset;
    list += (list.empty() ? "" : ", ") + preset.name;
  }
  throw unknown("preset", name, where, list);
}

std::vector<EncodedTensor> encoded_tensors(Format format, const layers::LinearSpec& linear) {
  const EncodedTensor input_scale{".input_scale", DType::kF32, 0};
  switch (format) {
    case Format::kFp8:
      return {{".weight", DType::kF8E4M3, linear.in}, {".weight_scale", DType::kF32, 0}, input_scale};
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly: {
      std::vector<EncodedTensor> tensors{
          {".weight", DType::kU8, linear.in / 2}, {".weight_scale", DType::kF8E4M3, linear.in / 16}, {".weight_scale_2", DType::kF32, 0}};
      if (format == Format::kNvfp4) tensors.push_back(input_scale);
      return tensors;
    }
    case Format::kNone:
      break;
  }
  throw bug("an unquantized linear has no encoding");
}

checkpoint::OutputTensor output_tensor(const EncodedTensor& tensor, const layers::LinearSpec& linear) {
  return {linear.module + tensor.suffix, tensor.dtype, tensor.row_elements == 0 ? Shape{} : Shape{linear.out, tensor.row_elements}};
}

std::vector<Tensor> encode_rows(Format format, const Tensor& weight, const LinearScales& scales, kernels::Fp8Quotient quotient) {
  const int64_t rows = weight.dim(0), in = weight.dim(1);
  if (format == Format::kFp8) {
    Tensor codes = Tensor::empty({rows, in}, DType::kF8E4M3);
    kernels::quantize_fp8(weight, scales.weight_scale, quotient, codes);
    return {codes};
  }
  require(format == Format::kNvfp4 || format == Format::kNvfp4WeightOnly, "an unquantized linear has no encoding");
  Tensor packed = Tensor::empty({rows, in / 2}, DType::kU8), block_scales = Tensor::empty({rows, in / 16}, DType::kF8E4M3);
  kernels::quantize_nvfp4(weight, scales.weight_scale, packed, block_scales);
  return {packed, block_scales};
}

float scalar_value(Format format, const std::string& suffix, const LinearScales& scales) {
  if (suffix == ".input_scale") return scales.input_scale;
  require(suffix == (format == Format::kFp8 ? ".weight_scale" : ".weight_scale_2"), "this format has no such scalar");
  return scales.weight_scale;
}

Tensor decode_rows(Format format, const std::vector<Tensor>& parts, const LinearScales& scales) {
  const int64_t rows = parts[0].dim(0), in = parts[0].dim(1) * (format == Format::kFp8 ? 1 : 2);
  Tensor weight = Tensor::empty({rows, in}, DType::kF32);
  if (format == Format::kFp8)
    kernels::dequantize_fp8(parts[0], scales.weight_scale, weight);
  else
    kernels::dequantize_nvfp4(parts[0], parts[1], scales.weight_scale, weight);
  return weight;
}

void fake_quantize_input(Format format, const LinearScales& scales, Tensor& x) {
  if (format == Format::kFp8) kernels::fake_quantize_fp8(x, scales.input_scale);
  if (format == Format::kNvfp4) kernels::fake_quantize_nvfp4(x, scales.input_scale);
}

}  // namespace ptq::recipes
