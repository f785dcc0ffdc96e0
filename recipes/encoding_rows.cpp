#include "recipes/encoding_rows.h"

#include <algorithm>

namespace ptq::recipes {

namespace {

constexpr float kE4M3Max = 448, kInt8Max = 127, kInt4Max = 7;
constexpr kernels::ScaleBlock kBlock{128, 128};

bool is_compressed(const Encoding& encoding) { return encoding.dialect == Dialect::kCompressedTensors; }

/// Row scales that compressed-tensors keeps in the model's dtype: a server multiplies by what is stored.
bool stores_bf16_scales(const Encoding& encoding) {
  return is_compressed(encoding) &&
         (encoding.format == Format::kInt4 || encoding.format == Format::kInt4Fp8 || encoding.format == Format::kInt8WeightOnly);
}

/// Row scales in the shape and dtype of the file.
Tensor scale_part(const Encoding& encoding, const Tensor& row_scales) {
  if (encoding.format == Format::kFp8Blocks)
    return encoding.dialect == Dialect::kModelOpt ? row_scales.reshaped({row_scales.dim(0), 1, row_scales.dim(1), 1}) : row_scales;
  const Tensor scales = stores_bf16_scales(encoding) ? kernels::converted(row_scales, DType::kBF16) : row_scales;
  return is_compressed(encoding) && scales.rank() == 1 ? scales.reshaped({scales.dim(0), 1}) : scales;
}

/// And back, f32.
Tensor scales_of_part(const Encoding& encoding, const Tensor& part) {
  if (encoding.format == Format::kFp8Blocks) return part.rank() == 4 ? part.reshaped({part.dim(0), part.dim(2)}) : part;
  return part.dtype() == DType::kBF16 ? kernels::converted(part, DType::kF32) : part;
}

/// One byte a code. W4A8: a server's kernel multiplies codes of -7 ... 7 into FP8.
Tensor int4_codes(const Encoding& encoding, const Tensor& weight, const Tensor& row_scales) {
  Tensor codes = Tensor::empty(weight.shape(), DType::kI8);
  kernels::quantize_int4_groups(weight, row_scales, group_size(encoding), codes);
  auto* code = codes.data<int8_t>();
  if (encoding.format == Format::kInt4Fp8) std::replace(code, code + codes.numel(), int8_t{-8}, int8_t{-7});
  return codes;
}

/// Four inputs to a word, input i of them in bits 8i as code + 128: codes [O, C] -> words [O, ⌈C/4⌉] i32; 0 beyond column C.
Tensor pack_int8_words(const Tensor& codes) {
  const int64_t rows = codes.dim(0), columns = codes.dim(1), width = (columns + 3) / 4;
  Tensor words = Tensor::zeros({rows, width}, DType::kI32);
  for (int64_t r = 0; r < rows; ++r) {
    auto* bytes = reinterpret_cast<uint8_t*>(words.data<int32_t>() + r * width);
    for (int64_t c = 0; c < columns; ++c) bytes[c] = static_cast<uint8_t>(codes.data<uint8_t>()[r * columns + c] ^ 0x80U);
  }
  return words;
}

Tensor unpack_int8_words(const Tensor& words, int64_t columns) {
  const int64_t rows = words.dim(0), width = words.dim(1);
  Tensor codes = Tensor::empty({rows, columns}, DType::kI8);
  for (int64_t r = 0; r < rows; ++r) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(words.data<int32_t>() + r * width);
    for (int64_t c = 0; c < columns; ++c) codes.data<uint8_t>()[r * columns + c] = static_cast<uint8_t>(bytes[c] ^ 0x80U);
  }
  return codes;
}

Tensor pack_int4(const Encoding& encoding, const Tensor& codes) {
  const int64_t rows = codes.dim(0), in = codes.dim(1);
  if (is_compressed(encoding)) {
    Tensor words = Tensor::empty({rows, (in + 7) / 8}, DType::kI32);
    kernels::pack_int4_words(codes, words);
    return words;
  }
  Tensor packed = Tensor::empty({rows / 2, in}, DType::kU8);
  kernels::pack_int4_row_pairs(codes, packed);
  return packed;
}

/// The matrix of one expert of a stacked tensor as a view of rank `rank` - 1.
Tensor expert_of(const Tensor& stacked, int64_t expert) {
  return stacked.rows(expert, expert + 1).reshaped(Shape(stacked.shape().begin() + 1, stacked.shape().end()));
}

/// Does this part of stacked experts lie as [in.., out], turned against its matrix? One scale per output has nothing to turn, and the
/// bytes of INT4 hold two outputs.
bool is_turned(const Encoding& encoding, const Tensor& part) {
  return part.rank() == 3 && encoding.format != Format::kInt4 && encoding.format != Format::kInt4Fp8;
}

}  // namespace

Tensor stored_row_scales(const Encoding& encoding, const Tensor& row_scales) {
  return stores_bf16_scales(encoding) ? kernels::converted(kernels::converted(row_scales, DType::kBF16), DType::kF32) : row_scales;
}

Tensor minmax_row_scales(const Encoding& encoding, const Tensor& weight, const LinearScales& scales) {
  const int64_t rows = weight.dim(0), in = weight.dim(1);
  switch (encoding.format) {
    case Format::kFp8Channels:
    case Format::kInt8:
    case Format::kInt8WeightOnly: {
      Tensor amaxes = Tensor::empty({rows}, DType::kF32);
      kernels::row_amax(weight, amaxes);
      kernels::amaxes_to_scales(amaxes, encoding.format == Format::kFp8Channels ? kE4M3Max : kInt8Max);
      return stored_row_scales(encoding, amaxes);
    }
    case Format::kFp8Blocks: {
      Tensor amaxes = Tensor::empty({(rows + kBlock.rows - 1) / kBlock.rows, (in + kBlock.columns - 1) / kBlock.columns}, DType::kF32);
      kernels::block_amax(weight, kBlock, amaxes);
      kernels::amaxes_to_scales(amaxes, kE4M3Max);
      return amaxes;
    }
    case Format::kInt4:
    case Format::kInt4Fp8: {
      const int64_t group = group_size(encoding);
      Tensor amaxes = Tensor::empty({rows, in / group}, DType::kF32);
      kernels::block_amax(weight, {1, group}, amaxes);
      kernels::amaxes_to_scales(amaxes, kInt4Max);
      return stored_row_scales(encoding, amaxes);
    }
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly: {
      Tensor packed = Tensor::empty({rows, in / 2}, DType::kU8), block_scales = Tensor::empty({rows, in / 16}, DType::kF8E4M3);
      kernels::quantize_nvfp4(weight, scales.weight_scale, packed, block_scales);
      return block_scales;
    }
    case Format::kNone:
    case Format::kFp8:
    case Format::kMxfp8:
    case Format::kMxfp4:
      break;
  }
  return {};
}

Tensor rounded_weight(const Encoding& encoding, const Tensor& weight, const Tensor& row_scales, const LinearScales& scales) {
  Tensor rounded = Tensor::empty(weight.shape(), DType::kF32);
  const int64_t rows = weight.dim(0), in = weight.dim(1);
  switch (encoding.format) {
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly: {
      Tensor packed = Tensor::empty({rows, in / 2}, DType::kU8);
      kernels::quantize_nvfp4_static(weight, row_scales, scales.weight_scale, packed);
      kernels::dequantize_nvfp4(packed, row_scales, scales.weight_scale, rounded);
      return rounded;
    }
    case Format::kFp8Channels: {
      Tensor codes = Tensor::empty({rows, in}, DType::kF8E4M3);
      kernels::quantize_fp8_rows(weight, row_scales, codes);
      kernels::dequantize_fp8_rows(codes, row_scales, rounded);
      return rounded;
    }
    case Format::kInt8:
    case Format::kInt8WeightOnly: {
      Tensor codes = Tensor::empty({rows, in}, DType::kI8);
      kernels::quantize_int8_rows(weight, row_scales, codes);
      kernels::dequantize_int8_rows(codes, row_scales, rounded);
      return rounded;
    }
    case Format::kInt4:
    case Format::kInt4Fp8:
      kernels::dequantize_int4_groups(int4_codes(encoding, weight, row_scales), row_scales, group_size(encoding), rounded);
      return rounded;
    default:
      throw bug("a format whose rows have no scales of their own");
  }
}

std::vector<Tensor> encode_matrix(const Encoding& encoding, const Tensor& weight, const Tensor& row_scales, const LinearScales& scales,
                                  kernels::Fp8Quotient quotient) {
  const int64_t rows = weight.dim(0), in = weight.dim(1);
  const auto given_or_minmax = [&] {
    return row_scales.defined() ? stored_row_scales(encoding, row_scales) : minmax_row_scales(encoding, weight, scales);
  };
  switch (encoding.format) {
    case Format::kFp8: {
      Tensor codes = Tensor::empty({rows, in}, DType::kF8E4M3);
      kernels::quantize_fp8(weight, scales.weight_scale, quotient, codes);
      return {codes};
    }
    case Format::kFp8Channels:
    case Format::kFp8Blocks: {
      const Tensor used = given_or_minmax();
      Tensor codes = Tensor::empty({rows, in}, DType::kF8E4M3);
      if (encoding.format == Format::kFp8Channels)
        kernels::quantize_fp8_rows(weight, used, codes);
      else
        kernels::quantize_fp8_blocks(weight, used, kBlock, codes);
      return {codes, scale_part(encoding, used)};
    }
    case Format::kInt8:
    case Format::kInt8WeightOnly: {
      const Tensor used = given_or_minmax();
      Tensor codes = Tensor::empty({rows, in}, DType::kI8);
      kernels::quantize_int8_rows(weight, used, codes);
      const bool in_words = encoding.format == Format::kInt8WeightOnly && is_compressed(encoding);
      return {in_words ? pack_int8_words(codes) : codes, scale_part(encoding, used)};
    }
    case Format::kInt4:
    case Format::kInt4Fp8: {
      const Tensor used = given_or_minmax();
      return {pack_int4(encoding, int4_codes(encoding, weight, used)), scale_part(encoding, used)};
    }
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly: {
      Tensor packed = Tensor::empty({rows, in / 2}, DType::kU8);
      if (row_scales.defined()) {
        kernels::quantize_nvfp4_static(weight, row_scales, scales.weight_scale, packed);
        return {packed, row_scales};
      }
      Tensor block_scales = Tensor::empty({rows, in / 16}, DType::kF8E4M3);
      kernels::quantize_nvfp4(weight, scales.weight_scale, packed, block_scales);
      return {packed, block_scales};
    }
    case Format::kMxfp8: {
      Tensor codes = Tensor::empty({rows, in}, DType::kF8E4M3), exponents = Tensor::empty({rows, in / 32}, DType::kU8);
      kernels::quantize_mxfp8(weight, codes, exponents);
      return {codes, exponents};
    }
    case Format::kMxfp4: {
      Tensor packed = Tensor::empty({rows, in / 2}, DType::kU8), exponents = Tensor::empty({rows, in / 32}, DType::kU8);
      kernels::quantize_mxfp4(weight, packed, exponents);
      return {packed, exponents};
    }
    case Format::kNone:
      break;
  }
  throw bug("an unquantized linear has no encoding");
}

Tensor decode_matrix(const Encoding& encoding, int64_t in, const std::vector<Tensor>& parts, const LinearScales& scales) {
  const bool in_pairs = row_unit(encoding) == 2;
  const int64_t rows = parts[0].dim(0) * (in_pairs ? 2 : 1);
  Tensor weight = Tensor::empty({rows, in}, DType::kF32);
  switch (encoding.format) {
    case Format::kFp8:
      kernels::dequantize_fp8(parts[0], scales.weight_scale, weight);
      return weight;
    case Format::kFp8Channels:
      kernels::dequantize_fp8_rows(parts[0], parts[1], weight);
      return weight;
    case Format::kFp8Blocks:
      kernels::dequantize_fp8_blocks(parts[0], scales_of_part(encoding, parts[1]), kBlock, weight);
      return weight;
    case Format::kInt8:
    case Format::kInt8WeightOnly:
      kernels::dequantize_int8_rows(parts[0].dtype() == DType::kI32 ? unpack_int8_words(parts[0], in) : parts[0],
                                    scales_of_part(encoding, parts[1]), weight);
      return weight;
    case Format::kInt4:
    case Format::kInt4Fp8: {
      Tensor codes = Tensor::empty({rows, in}, DType::kI8);
      if (in_pairs)
        kernels::unpack_int4_row_pairs(parts[0], codes);
      else
        kernels::unpack_int4_words(parts[0], codes);
      kernels::dequantize_int4_groups(codes, scales_of_part(encoding, parts[1]), group_size(encoding), weight);
      return weight;
    }
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly:
      kernels::dequantize_nvfp4(parts[0], parts[1], scales.weight_scale, weight);
      return weight;
    case Format::kMxfp8:
      kernels::dequantize_mxfp8(parts[0], parts[1], weight);
      return weight;
    case Format::kMxfp4:
      kernels::dequantize_mxfp4(parts[0], parts[1], weight);
      return weight;
    case Format::kNone:
      break;
  }
  throw bug("an unquantized linear has no encoding");
}

std::vector<Tensor> encode_stacked(const Encoding& encoding, const layers::LinearSpec& linear, const Tensor& weight,
                                   const Tensor& row_scales, const LinearScales& scales) {
  require(weight.rank() == 3, "stacked experts have three dimensions");
  const int64_t experts = weight.dim(0), in = weight.dim(1), out = weight.dim(2);
  if (encoding.format == Format::kFp8) {  // element by element: the order does not matter
    Tensor codes = Tensor::empty({experts * in, out}, DType::kF8E4M3);
    kernels::quantize_fp8(weight.reshaped({experts * in, out}), scales.weight_scale, kernels::Fp8Quotient::kExact, codes);
    return {codes.reshaped(weight.shape())};
  }
  std::vector<Tensor> stacked;
  for (const auto& part : encoded_tensors(encoding, linear)) {
    if (part.kind != EncodedTensor::Kind::kRows) continue;
    Shape shape = part.tensor.shape;
    shape[0] = experts;
    stacked.push_back(Tensor::empty(shape, part.tensor.dtype));
  }
  Tensor turned = Tensor::empty({out, in}, weight.dtype());
  for (int64_t e = 0; e < experts; ++e) {
    kernels::transpose(expert_of(weight, e), turned);
    const Tensor of_expert = row_scales.defined() ? expert_of(row_scales, e) : Tensor();
    const std::vector<Tensor> parts = encode_matrix(encoding, turned, of_expert, scales, kernels::Fp8Quotient::kExact);
    for (size_t p = 0; p < parts.size(); ++p) {
      Tensor place = expert_of(stacked[p], e);
      if (is_turned(encoding, stacked[p]))
        kernels::transpose(parts[p], place);
      else
        std::copy_n(parts[p].raw(), parts[p].bytes(), place.raw());
    }
  }
  return stacked;
}

std::vector<Tensor> encode_expert(const Encoding& encoding, const layers::LinearSpec& linear, const Tensor& weight,
                                  const Tensor& row_scales, const LinearScales& scales, kernels::Fp8Quotient quotient) {
  std::vector<Tensor> parts =
      encode_matrix(encoding, weight, row_scales, scales, linear.is_stacked() ? kernels::Fp8Quotient::kExact : quotient);
  if (!linear.is_stacked()) return parts;
  size_t next = 0;
  for (const auto& part : encoded_tensors(encoding, linear)) {
    if (part.kind != EncodedTensor::Kind::kRows) continue;
    Shape shape = part.tensor.shape;
    shape[0] = 1;
    Tensor place = Tensor::empty(shape, part.tensor.dtype);
    Tensor matrix = expert_of(place, 0);
    if (is_turned(encoding, place))
      kernels::transpose(parts[next], matrix);
    else
      std::copy_n(parts[next].raw(), parts[next].bytes(), place.raw());
    parts[next++] = place;
  }
  return parts;
}

Tensor decode_stacked(const Encoding& encoding, const layers::LinearSpec& linear, const std::vector<Tensor>& parts,
                      const LinearScales& scales) {
  const int64_t experts = parts[0].dim(0);
  Tensor weight = Tensor::empty({experts, linear.out, linear.in}, DType::kF32);
  for (int64_t e = 0; e < experts; ++e) {
    std::vector<Tensor> matrix;
    for (const Tensor& part : parts) {
      Tensor of_expert = expert_of(part, e);
      if (is_turned(encoding, part)) {
        Tensor turned = Tensor::empty({of_expert.dim(1), of_expert.dim(0)}, part.dtype());
        kernels::transpose(of_expert, turned);
        of_expert = turned;
      }
      matrix.push_back(of_expert);
    }
    const Tensor decoded = decode_matrix(encoding, linear.in, matrix, scales);
    std::copy_n(decoded.raw(), decoded.bytes(), expert_of(weight, e).raw());
  }
  return weight;
}

}  // namespace ptq::recipes
