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

/// The matrix of one expert of a stacked tensor, as a view.
Tensor expert_of(const Tensor& stacked, int64_t expert) {
  return stacked.rows(expert, expert + 1).reshaped({stacked.dim(1), stacked.dim(2)});
}

/// Parts [O, ...] of one matrix -> weight [O, C] f32.
void decode_matrix(Format format, const std::vector<Tensor>& parts, const LinearScales& scales, Tensor& weight) {
  if (format == Format::kFp8)
    kernels::dequantize_fp8(parts[0], scales.weight_scale, weight);
  else
    kernels::dequantize_nvfp4(parts[0], parts[1], scales.weight_scale, weight);
}

/// weight [E, in, out]: blocks run along `in`, so each expert is turned to [out, in], quantized, and its codes and scales turned back.
std::vector<Tensor> encode_experts(Format format, const Tensor& weight, const LinearScales& scales) {
  require(weight.rank() == 3, "stacked experts have three dimensions");
  const int64_t experts = weight.dim(0), in = weight.dim(1), out = weight.dim(2);
  if (format == Format::kFp8) {  // element by element: the order does not matter
    Tensor codes = Tensor::empty({experts * in, out}, DType::kF8E4M3);
    kernels::quantize_fp8(weight.reshaped({experts * in, out}), scales.weight_scale, kernels::Fp8Quotient::kExact, codes);
    return {codes.reshaped(weight.shape())};
  }
  std::vector<Tensor> stacked{Tensor::empty({experts, in / 2, out}, DType::kU8), Tensor::empty({experts, in / 16, out}, DType::kF8E4M3)};
  Tensor turned = Tensor::empty({out, in}, weight.dtype()), packed = Tensor::empty({out, in / 2}, DType::kU8),
         block_scales = Tensor::empty({out, in / 16}, DType::kF8E4M3);
  for (int64_t e = 0; e < experts; ++e) {
    kernels::transpose(expert_of(weight, e), turned);
    kernels::quantize_nvfp4(turned, scales.weight_scale, packed, block_scales);
    Tensor codes = expert_of(stacked[0], e), code_scales = expert_of(stacked[1], e);
    kernels::transpose(packed, codes);
    kernels::transpose(block_scales, code_scales);
  }
  return stacked;
}

/// The inverse of encode_experts, but for the order: [E, out, in] f32.
Tensor decode_experts(Format format, const layers::LinearSpec& linear, const std::vector<Tensor>& parts, const LinearScales& scales) {
  const int64_t experts = parts[0].dim(0);
  Tensor weight = Tensor::empty({experts, linear.out, linear.in}, DType::kF32);
  std::vector<Tensor> turned;
  for (const Tensor& part : parts) turned.push_back(Tensor::empty({part.dim(2), part.dim(1)}, part.dtype()));
  for (int64_t e = 0; e < experts; ++e) {
    for (size_t p = 0; p < parts.size(); ++p) kernels::transpose(expert_of(parts[p], e), turned[p]);
    Tensor matrix = expert_of(weight, e);
    decode_matrix(format, turned, scales, matrix);
  }
  return weight;
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
  // `width` inputs' worth of elements per row of the weight.
  const auto rows = [&](const std::string& part, DType dtype, int64_t width) {
    const Shape shape = linear.is_stacked() ? Shape{linear.stack, width, linear.out} : Shape{linear.out, width};
    return EncodedTensor{part, {linear.tensor(part), dtype, shape}, false};
  };
  const auto scalar = [&](const std::string& part) { return EncodedTensor{part, {linear.tensor(part), DType::kF32, {}}, true}; };
  switch (format) {
    case Format::kFp8:
      return {rows(".weight", DType::kF8E4M3, linear.in), scalar(".weight_scale"), scalar(".input_scale")};
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly: {
      std::vector<EncodedTensor> tensors{rows(".weight", DType::kU8, linear.in / 2), rows(".weight_scale", DType::kF8E4M3, linear.in / 16),
                                         scalar(".weight_scale_2")};
      if (format == Format::kNvfp4) tensors.push_back(scalar(".input_scale"));
      return tensors;
    }
    case Format::kNone:
      break;
  }
  throw bug("an unquantized linear has no encoding");
}

std::vector<Tensor> encode_rows(Format format, const layers::LinearSpec& linear, const Tensor& weight, const LinearScales& scales,
                                kernels::Fp8Quotient quotient) {
  require(format != Format::kNone, "an unquantized linear has no encoding");
  if (linear.is_stacked()) return encode_experts(format, weight, scales);
  const int64_t rows = weight.dim(0), in = weight.dim(1);
  if (format == Format::kFp8) {
    Tensor codes = Tensor::empty({rows, in}, DType::kF8E4M3);
    kernels::quantize_fp8(weight, scales.weight_scale, quotient, codes);
    return {codes};
  }
  Tensor packed = Tensor::empty({rows, in / 2}, DType::kU8), block_scales = Tensor::empty({rows, in / 16}, DType::kF8E4M3);
  kernels::quantize_nvfp4(weight, scales.weight_scale, packed, block_scales);
  return {packed, block_scales};
}

float scalar_value(Format format, const std::string& part, const LinearScales& scales) {
  if (part == ".input_scale") return scales.input_scale;
  require(part == (format == Format::kFp8 ? ".weight_scale" : ".weight_scale_2"), "this format has no such scalar");
  return scales.weight_scale;
}

Tensor decode_rows(Format format, const layers::LinearSpec& linear, const std::vector<Tensor>& parts, const LinearScales& scales) {
  if (linear.is_stacked()) return decode_experts(format, linear, parts, scales);
  const int64_t rows = parts[0].dim(0), in = parts[0].dim(1) * (format == Format::kFp8 ? 1 : 2);
  Tensor weight = Tensor::empty({rows, in}, DType::kF32);
  decode_matrix(format, parts, scales, weight);
  return weight;
}

void fake_quantize_input(Format format, const LinearScales& scales, Tensor& x) {
  if (format == Format::kFp8) kernels::fake_quantize_fp8(x, scales.input_scale);
  if (format == Format::kNvfp4) kernels::fake_quantize_nvfp4(x, scales.input_scale);
}

}  // namespace ptq::recipes
