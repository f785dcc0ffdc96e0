#include "recipes/encoding.h"

#include <algorithm>
#include <cstring>

#include "recipes/encoding_rows.h"

namespace ptq::recipes {

namespace {

using Kind = EncodedTensor::Kind;

constexpr int64_t kBlock = 128;

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

/// Builds the tensors of one linear in one dialect.
class Layout {
 public:
  Layout(const Encoding& encoding, const layers::LinearSpec& linear) : encoding_(encoding), linear_(linear) {}

  /// A row per weight row, `width` elements each; stacked [stack, width, out].
  void rows(const char* part, DType dtype, int64_t width) {
    add(part, dtype, linear_.is_stacked() ? Shape{linear_.stack, width, linear_.out} : Shape{linear_.out, width}, Kind::kRows);
  }
  /// A row per `unit` weight rows; stacked as they are, [stack, out/unit, width].
  void packed_rows(const char* part, DType dtype, int64_t width, int64_t unit) {
    const Shape shape = linear_.is_stacked() ? Shape{linear_.stack, linear_.out / unit, width} : Shape{linear_.out / unit, width};
    add(part, dtype, shape, Kind::kRows, linear_.is_stacked() ? 1 : unit);
  }
  /// One scale per weight row: [out] in ModelOpt's files, [out, 1] in compressed-tensors'; stacked [stack, out].
  void row_scales(DType dtype = DType::kF32) {
    Shape shape{linear_.out};
    if (linear_.is_stacked()) shape = {linear_.stack, linear_.out};
    if (is_compressed()) shape.push_back(1);
    add(".weight_scale", dtype, shape, Kind::kRows);
  }
  void block_scales() {
    const int64_t down = ceil_div(linear_.out, kBlock), across = ceil_div(linear_.in, kBlock);
    const char* part = encoding_.dialect == Dialect::kDeepseekFp8 ? ".weight_scale_inv" : ".weight_scale";
    add(part, DType::kF32, encoding_.dialect == Dialect::kModelOpt ? Shape{down, 1, across, 1} : Shape{down, across}, Kind::kRows, kBlock);
  }
  void scalar(const char* part) { add(part, DType::kF32, is_compressed() ? Shape{1} : Shape{}, Kind::kScalar); }
  void input_scale(const char* compressed_name) {
    if (has_input_scale(encoding_)) scalar(is_compressed() ? compressed_name : ".input_scale");
  }
  void shape() { add(".weight_shape", DType::kI64, {2}, Kind::kShape); }

  bool is_compressed() const { return encoding_.dialect == Dialect::kCompressedTensors; }
  std::vector<EncodedTensor> finish() {
    if (encoding_.pre_quant_scale) add(".pre_quant_scale", DType::kBF16, {linear_.in}, Kind::kVector);
    return std::move(tensors_);
  }

 private:
  void add(const char* part, DType dtype, Shape shape, Kind kind, int64_t rows = 1) {
    tensors_.push_back({part, {linear_.tensor(part), dtype, std::move(shape)}, kind, rows});
  }

  const Encoding& encoding_;
  const layers::LinearSpec& linear_;
  std::vector<EncodedTensor> tensors_;
};

}  // namespace

std::string quant_algo(const Encoding& encoding) {
  if (encoding.format == Format::kNvfp4 && encoding.pre_quant_scale) return "NVFP4_AWQ";
  return info(encoding.format).quant_algo;
}

int64_t group_size(const Encoding& encoding) {
  const int64_t own = info(encoding.format).group_size;
  const bool has_choice = encoding.format == Format::kInt4 || encoding.format == Format::kInt4Fp8;
  return has_choice && encoding.group_size > 0 ? encoding.group_size : own;
}

bool quantizes_activations(const Encoding& encoding) {
  return info(encoding.format).quantizes_activations ||
         (encoding.format == Format::kFp8Blocks && encoding.dialect == Dialect::kCompressedTensors);
}

bool has_input_scale(const Encoding& encoding) {
  return info(encoding.format).has_input_scale && !(encoding.format == Format::kInt4Fp8 && encoding.dialect == Dialect::kCompressedTensors);
}

std::string layout_fault(const Encoding& encoding, const layers::LinearSpec& linear) {
  if (!encoding.is_quantized()) return "";
  const std::string format = info(encoding.format).name, dialect = dialect_name(encoding.dialect);
  if (encoding.dialect == Dialect::kDeepseekFp8 && encoding.format != Format::kFp8Blocks)
    return "gets " + format + ", but the dialect " + dialect + " holds fp8_pb_wo alone";
  if (encoding.pre_quant_scale && encoding.dialect != Dialect::kModelOpt)
    return "has a smoothing vector beside it, which the dialect " + dialect + " cannot hold";
  if (linear.is_stacked() && encoding.dialect != Dialect::kModelOpt)
    return "holds all experts in one tensor, for which the dialect " + dialect + " has no layout";
  if (linear.is_stacked() && encoding.format == Format::kFp8Blocks)
    return "holds all experts in one tensor, for which " + format + " has no layout";
  if (const int64_t group = group_size(encoding); group > 0 && linear.in % group != 0)
    return "has " + std::to_string(linear.in) + " inputs, which is not a multiple of the " + std::to_string(group) + " that " + format +
           " groups";
  const bool in_pairs = encoding.format == Format::kInt4 || encoding.format == Format::kInt4Fp8;
  if (in_pairs && encoding.dialect == Dialect::kModelOpt && linear.out % 2 != 0)
    return "has " + std::to_string(linear.out) + " outputs, which " + format + " cannot pack in pairs";
  return "";
}

std::vector<EncodedTensor> encoded_tensors(const Encoding& encoding, const layers::LinearSpec& linear) {
  require(encoding.is_quantized(), "an unquantized linear has no encoding");
  if (const std::string fault = layout_fault(encoding, linear); !fault.empty()) throw bug(linear.module + " " + fault);
  Layout layout(encoding, linear);
  const int64_t in = linear.in;
  switch (encoding.format) {
    case Format::kFp8:
      layout.rows(".weight", DType::kF8E4M3, in);
      layout.scalar(".weight_scale");
      layout.input_scale(".input_scale");
      break;
    case Format::kFp8Channels:
      layout.rows(".weight", DType::kF8E4M3, in);
      layout.row_scales();
      break;
    case Format::kFp8Blocks:
      layout.rows(".weight", DType::kF8E4M3, in);
      layout.block_scales();
      break;
    case Format::kInt8:
      layout.rows(".weight", DType::kI8, in);
      layout.row_scales();
      layout.input_scale(".input_scale");
      break;
    case Format::kInt8WeightOnly:
      if (layout.is_compressed()) {  // what servers read as weights alone is packed into words, with scales in the model's dtype
        layout.rows(".weight_packed", DType::kI32, ceil_div(in, 4));
        layout.row_scales(DType::kBF16);
        layout.shape();
        break;
      }
      layout.rows(".weight", DType::kI8, in);
      layout.row_scales();
      break;
    case Format::kInt4:
    case Format::kInt4Fp8:
      if (layout.is_compressed()) {
        layout.rows(".weight_packed", DType::kI32, ceil_div(in, 8));
        layout.rows(".weight_scale", DType::kBF16, in / group_size(encoding));
        layout.shape();
        break;
      }
      layout.packed_rows(".weight", DType::kU8, in, 2);
      layout.packed_rows(".weight_scale", DType::kF32, in / group_size(encoding), 1);
      if (encoding.format == Format::kInt4Fp8) layout.scalar(".weight_scale_2");
      layout.input_scale(".input_scale");
      break;
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly:
      layout.rows(layout.is_compressed() ? ".weight_packed" : ".weight", DType::kU8, in / 2);
      layout.rows(".weight_scale", DType::kF8E4M3, in / 16);
      layout.scalar(layout.is_compressed() ? ".weight_global_scale" : ".weight_scale_2");
      layout.input_scale(".input_global_scale");
      break;
    case Format::kMxfp8:
      layout.rows(".weight", DType::kF8E4M3, in);
      layout.rows(".weight_scale", DType::kU8, in / 32);
      break;
    case Format::kMxfp4:
      layout.rows(layout.is_compressed() ? ".weight_packed" : ".weight", DType::kU8, in / 2);
      layout.rows(".weight_scale", DType::kU8, in / 32);
      break;
    case Format::kNone:
      break;
  }
  return layout.finish();
}

int64_t row_unit(const Encoding& encoding) {
  if (encoding.format == Format::kFp8Blocks) return kBlock;
  const bool in_pairs = encoding.format == Format::kInt4 || encoding.format == Format::kInt4Fp8;
  return in_pairs && encoding.dialect == Dialect::kModelOpt ? 2 : 1;
}

std::vector<Tensor> encode_rows(const Encoding& encoding, const layers::LinearSpec& linear, const Tensor& weight, const Tensor& row_scales,
                                const LinearScales& scales, kernels::Fp8Quotient quotient) {
  require(encoding.is_quantized(), "an unquantized linear has no encoding");
  if (!linear.is_stacked()) return encode_matrix(encoding, weight, row_scales, scales, quotient);
  return encode_stacked(encoding, linear, weight, row_scales, scales);
}

Tensor decode_rows(const Encoding& encoding, const layers::LinearSpec& linear, const std::vector<Tensor>& parts,
                   const LinearScales& scales) {
  require(encoding.is_quantized(), "an unquantized linear has no encoding");
  if (linear.is_stacked()) return decode_stacked(encoding, linear, parts, scales);
  return decode_matrix(encoding, linear.in, parts, scales);
}

Tensor constant_part(const EncodedTensor& part, const layers::LinearSpec& linear, const LinearScales& scales) {
  Tensor tensor = Tensor::empty(part.tensor.shape, part.tensor.dtype);
  switch (part.kind) {
    case Kind::kScalar: {
      float& value = *tensor.data<float>();
      if (part.part.starts_with(".input"))
        value = scales.input_scale;
      else
        value = scales.weight_scale;
      if (part.part.ends_with("_global_scale")) value = 1.0f / value;  // these names divide
      return tensor;
    }
    case Kind::kVector:
      if (scales.pre_quant_scale.defined() && scales.pre_quant_scale.dtype() == DType::kBF16) return scales.pre_quant_scale;
      if (scales.pre_quant_scale.defined())
        kernels::convert(scales.pre_quant_scale, tensor);
      else
        std::fill_n(tensor.data<BF16>(), tensor.numel(), to_bf16(1.0f));
      return tensor;
    case Kind::kShape:
      tensor.data<int64_t>()[0] = linear.out;
      tensor.data<int64_t>()[1] = linear.in;
      return tensor;
    case Kind::kRows:
      break;
  }
  throw bug(part.part + " is different for every row");
}

void read_constant(const EncodedTensor& part, const Tensor& stored, LinearScales& scales) {
  if (part.kind == Kind::kVector) scales.pre_quant_scale = stored;
  if (part.kind != Kind::kScalar) return;
  const float value = *stored.data<float>();
  (part.part.starts_with(".input") ? scales.input_scale : scales.weight_scale) =
      part.part.ends_with("_global_scale") ? 1.0f / value : value;
}

void smooth_input(const Encoding& encoding, const LinearScales& scales, Tensor& x) {
  if (!encoding.pre_quant_scale || !scales.pre_quant_scale.defined()) return;
  const int64_t width = x.dim(1);
  Tensor factors = Tensor::empty({width}, DType::kF32);
  kernels::convert(scales.pre_quant_scale, factors);
  for (int64_t t = 0; t < x.dim(0); ++t) {
    float* row = x.data<float>() + t * width;
    for (int64_t c = 0; c < width; ++c) row[c] *= factors.data<float>()[c];
  }
}

void fake_quantize_input(const Encoding& encoding, const LinearScales& scales, Tensor& x) {
  smooth_input(encoding, scales, x);
  switch (encoding.format) {
    case Format::kFp8:
      return kernels::fake_quantize_fp8(x, scales.input_scale);
    case Format::kFp8Channels:
      return kernels::fake_quantize_fp8_groups(x, x.dim(1));
    case Format::kFp8Blocks:
      if (quantizes_activations(encoding)) kernels::fake_quantize_fp8_groups(x, kBlock);
      return;
    case Format::kInt8:
      return kernels::fake_quantize_int8(x, scales.input_scale);
    case Format::kInt4Fp8:
      if (has_input_scale(encoding)) return kernels::fake_quantize_fp8(x, scales.input_scale);
      return kernels::fake_quantize_fp8_groups(x, x.dim(1));
    case Format::kNvfp4:
      return kernels::fake_quantize_nvfp4(x, scales.input_scale);
    case Format::kMxfp8:
      return kernels::fake_quantize_mxfp8(x);
    case Format::kMxfp4:
      return kernels::fake_quantize_mxfp4(x);
    case Format::kNone:
    case Format::kInt8WeightOnly:
    case Format::kInt4:
    case Format::kNvfp4WeightOnly:
      return;
  }
}

}  // namespace ptq::recipes
