#include "recipes/encoding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/expect_error.h"
#include "tests/support/reference_ops.h"

namespace ptq::recipes {
namespace {

using Kind = EncodedTensor::Kind;
constexpr auto kExact = kernels::Fp8Quotient::kExact;

layers::LinearSpec linear(int64_t out = 160, int64_t in = 384) {
  layers::LinearSpec spec;
  spec.module = "m";
  spec.out = out;
  spec.in = in;
  return spec;
}

/// Four experts whose weights lie as [in, out].
layers::LinearSpec stacked() {
  layers::LinearSpec spec = linear(24, 128);
  spec.module = "experts.gate_up_proj";
  spec.expert = layers::kAllExperts;
  spec.stack = 4;
  return spec;
}

std::vector<Encoding> encodings_of(Dialect dialect) {
  std::vector<Encoding> encodings;
  for (const FormatInfo& format : all_formats())
    if (format.format != Format::kNone && (dialect != Dialect::kDeepseekFp8 || format.format == Format::kFp8Blocks))
      encodings.push_back({format.format, dialect});
  return encodings;
}

std::vector<Encoding> all_encodings() {
  std::vector<Encoding> encodings;
  for (const Dialect dialect : {Dialect::kModelOpt, Dialect::kCompressedTensors, Dialect::kDeepseekFp8})
    for (const Encoding& encoding : encodings_of(dialect)) encodings.push_back(encoding);
  return encodings;
}

std::string name_of(const Encoding& encoding) { return info(encoding.format).name + " in " + dialect_name(encoding.dialect); }

std::string tensors_of(const Encoding& encoding, const layers::LinearSpec& spec = linear()) {
  std::string text;
  for (const auto& part : encoded_tensors(encoding, spec)) {
    EXPECT_EQ(part.tensor.name, spec.tensor(part.part));
    text += (text.empty() ? "" : "; ") + part.tensor.name + " " + std::string(dtype_name(part.tensor.dtype)) + " " +
            to_string(part.tensor.shape);
  }
  return text;
}

TEST(EncodedTensors, OfModelOpt) {
  const auto of = [](Format format, bool smoothed = false) { return tensors_of({format, Dialect::kModelOpt, 0, smoothed}); };

  EXPECT_EQ(of(Format::kFp8), "m.weight F8_E4M3 [160, 384]; m.weight_scale F32 []; m.input_scale F32 []");
  EXPECT_EQ(of(Format::kFp8Channels), "m.weight F8_E4M3 [160, 384]; m.weight_scale F32 [160]");
  EXPECT_EQ(of(Format::kFp8Blocks), "m.weight F8_E4M3 [160, 384]; m.weight_scale F32 [2, 1, 3, 1]");
  EXPECT_EQ(of(Format::kInt8, true),
            "m.weight I8 [160, 384]; m.weight_scale F32 [160]; m.input_scale F32 []; m.pre_quant_scale BF16 [384]");
  EXPECT_EQ(of(Format::kInt8WeightOnly), "m.weight I8 [160, 384]; m.weight_scale F32 [160]");
  EXPECT_EQ(of(Format::kInt4, true), "m.weight U8 [80, 384]; m.weight_scale F32 [160, 3]; m.pre_quant_scale BF16 [384]");
  EXPECT_EQ(of(Format::kInt4Fp8), "m.weight U8 [80, 384]; m.weight_scale F32 [160, 3]; m.weight_scale_2 F32 []; m.input_scale F32 []");
  EXPECT_EQ(of(Format::kNvfp4), "m.weight U8 [160, 192]; m.weight_scale F8_E4M3 [160, 24]; m.weight_scale_2 F32 []; m.input_scale F32 []");
  EXPECT_EQ(of(Format::kNvfp4WeightOnly), "m.weight U8 [160, 192]; m.weight_scale F8_E4M3 [160, 24]; m.weight_scale_2 F32 []");
  EXPECT_EQ(of(Format::kMxfp8), "m.weight F8_E4M3 [160, 384]; m.weight_scale U8 [160, 12]");
  EXPECT_EQ(of(Format::kMxfp4), "m.weight U8 [160, 192]; m.weight_scale U8 [160, 12]");
  test::expect_error(ErrorKind::kBug, "no encoding", [&] { of(Format::kNone); });
}

TEST(EncodedTensors, OfCompressedTensors) {
  const auto of = [](Format format, int64_t group = 0) { return tensors_of({format, Dialect::kCompressedTensors, group}); };

  EXPECT_EQ(of(Format::kFp8), "m.weight F8_E4M3 [160, 384]; m.weight_scale F32 [1]; m.input_scale F32 [1]");
  EXPECT_EQ(of(Format::kFp8Channels), "m.weight F8_E4M3 [160, 384]; m.weight_scale F32 [160, 1]");
  EXPECT_EQ(of(Format::kFp8Blocks), "m.weight F8_E4M3 [160, 384]; m.weight_scale F32 [2, 3]");
  EXPECT_EQ(of(Format::kInt8), "m.weight I8 [160, 384]; m.weight_scale F32 [160, 1]; m.input_scale F32 [1]");
  EXPECT_EQ(of(Format::kInt8WeightOnly), "m.weight_packed I32 [160, 96]; m.weight_scale BF16 [160, 1]; m.weight_shape I64 [2]");
  EXPECT_EQ(of(Format::kInt4), "m.weight_packed I32 [160, 48]; m.weight_scale BF16 [160, 3]; m.weight_shape I64 [2]");
  EXPECT_EQ(of(Format::kInt4Fp8, 64), "m.weight_packed I32 [160, 48]; m.weight_scale BF16 [160, 6]; m.weight_shape I64 [2]");
  EXPECT_EQ(of(Format::kNvfp4),
            "m.weight_packed U8 [160, 192]; m.weight_scale F8_E4M3 [160, 24]; m.weight_global_scale F32 [1]; m.input_global_scale F32 [1]");
  EXPECT_EQ(of(Format::kNvfp4WeightOnly), "m.weight_packed U8 [160, 192]; m.weight_scale F8_E4M3 [160, 24]; m.weight_global_scale F32 [1]");
  EXPECT_EQ(of(Format::kMxfp8), "m.weight F8_E4M3 [160, 384]; m.weight_scale U8 [160, 12]");
  EXPECT_EQ(of(Format::kMxfp4), "m.weight_packed U8 [160, 192]; m.weight_scale U8 [160, 12]");
}

TEST(EncodedTensors, OfDeepseek) {
  EXPECT_EQ(tensors_of({Format::kFp8Blocks, Dialect::kDeepseekFp8}), "m.weight F8_E4M3 [160, 384]; m.weight_scale_inv F32 [2, 3]");
}

TEST(EncodedTensors, StackedExpertsKeepInputsBeforeOutputs) {
  const auto of = [](Format format) { return tensors_of({format}, stacked()); };

  EXPECT_EQ(of(Format::kFp8),
            "experts.gate_up_proj F8_E4M3 [4, 128, 24]; experts.gate_up_proj_weight_scale F32 []; experts.gate_up_proj_input_scale F32 []");
  EXPECT_EQ(of(Format::kFp8Channels), "experts.gate_up_proj F8_E4M3 [4, 128, 24]; experts.gate_up_proj_weight_scale F32 [4, 24]");
  EXPECT_EQ(of(Format::kNvfp4),
            "experts.gate_up_proj U8 [4, 64, 24]; experts.gate_up_proj_weight_scale F8_E4M3 [4, 8, 24]; "
            "experts.gate_up_proj_weight_scale_2 F32 []; experts.gate_up_proj_input_scale F32 []");
  EXPECT_EQ(of(Format::kInt4), "experts.gate_up_proj U8 [4, 12, 128]; experts.gate_up_proj_weight_scale F32 [4, 24, 1]");
  EXPECT_EQ(of(Format::kMxfp4), "experts.gate_up_proj U8 [4, 64, 24]; experts.gate_up_proj_weight_scale U8 [4, 4, 24]");
}

TEST(LayoutFault, SaysWhatCannotBeStored) {
  const auto fault = [](Format format, Dialect dialect, const layers::LinearSpec& spec) { return layout_fault({format, dialect}, spec); };

  for (const Encoding& encoding : all_encodings()) EXPECT_EQ(layout_fault(encoding, linear()), "") << name_of(encoding);
  EXPECT_EQ(fault(Format::kNone, Dialect::kDeepseekFp8, linear(3, 5)), "");
  EXPECT_EQ(fault(Format::kNvfp4, Dialect::kModelOpt, linear(8, 72)), "has 72 inputs, which is not a multiple of the 16 that nvfp4 groups");
  EXPECT_EQ(fault(Format::kInt4, Dialect::kModelOpt, linear(8, 64)), "has 64 inputs, which is not a multiple of the 128 that int4 groups");
  EXPECT_EQ(fault(Format::kMxfp8, Dialect::kModelOpt, linear(8, 48)), "has 48 inputs, which is not a multiple of the 32 that mxfp8 groups");
  EXPECT_EQ(fault(Format::kInt4, Dialect::kModelOpt, linear(7, 128)), "has 7 outputs, which int4 cannot pack in pairs");
  EXPECT_EQ(fault(Format::kInt4, Dialect::kCompressedTensors, linear(7, 128)), "");
  EXPECT_EQ(layout_fault({Format::kInt4, Dialect::kCompressedTensors, 0, true}, linear()),
            "has a smoothing vector beside it, which the dialect compressed-tensors cannot hold");
  EXPECT_EQ(fault(Format::kFp8, Dialect::kDeepseekFp8, linear()), "gets fp8, but the dialect deepseek-fp8 holds fp8_pb_wo alone");
  EXPECT_EQ(fault(Format::kFp8, Dialect::kCompressedTensors, stacked()),
            "holds all experts in one tensor, for which the dialect compressed-tensors has no layout");
  EXPECT_EQ(fault(Format::kFp8Blocks, Dialect::kModelOpt, stacked()), "holds all experts in one tensor, for which fp8_pb_wo has no layout");
}

TEST(RowUnit, IsWhatSharesABytesOrAScale) {
  for (const Encoding& encoding : all_encodings()) {
    int64_t most = 1;
    for (const auto& part : encoded_tensors(encoding, linear())) most = std::max(most, part.rows);
    EXPECT_EQ(row_unit(encoding), most) << name_of(encoding);
  }
}

float amax_of(const Tensor& tensor) {
  float amax = 0;
  for (const float x : test::values_of(tensor)) amax = std::max(amax, std::fabs(x));
  return amax;
}

/// ‖decoded - weight‖ / ‖weight‖.
double relative_l2(const Tensor& weight, const Tensor& decoded) {
  const std::vector<float> w = test::values_of(weight), d = test::values_of(decoded);
  EXPECT_EQ(w.size(), d.size());
  double error = 0, norm = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    error += std::pow(static_cast<double>(d[i]) - static_cast<double>(w[i]), 2);
    norm += std::pow(static_cast<double>(w[i]), 2);
  }
  return std::sqrt(error / norm);
}

LinearScales scales_for(const Encoding& encoding, const Tensor& weight) {
  LinearScales scales;
  const float amax = amax_of(weight);
  scales.weight_scale = encoding.format == Format::kFp8 || encoding.format == Format::kInt4Fp8 ? amax / 448.0f : amax / 2688.0f;
  return scales;
}

/// Least and most error of Gaussian weights: what so few bits cannot do better than, and must not do worse.
std::pair<double, double> error_bounds(Format format) {
  switch (format) {
    case Format::kInt8:
    case Format::kInt8WeightOnly:
      return {0.002, 0.02};
    case Format::kInt4:
    case Format::kInt4Fp8:
      return {0.05, 0.15};
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly:
      return {0.05, 0.13};
    case Format::kMxfp4:
      return {0.05, 0.18};
    default:
      return {0.005, 0.03};
  }
}

TEST(EncodeRows, LosesWhatItsBitsLoseAndNoMore) {
  const Tensor weight = test::random_tensor({160, 384}, DType::kBF16, 1, 0.02f);

  for (const Encoding& encoding : all_encodings()) {
    const LinearScales scales = scales_for(encoding, weight);
    const auto parts = encode_rows(encoding, linear(), weight, Tensor(), scales, kExact);
    const Tensor decoded = decode_rows(encoding, linear(), parts, scales);

    size_t next = 0;
    for (const auto& part : encoded_tensors(encoding, linear())) {
      if (part.kind != Kind::kRows) continue;
      ASSERT_LT(next, parts.size());
      EXPECT_EQ(parts[next].shape(), part.tensor.shape) << name_of(encoding) << part.part;
      EXPECT_EQ(parts[next++].dtype(), part.tensor.dtype) << name_of(encoding) << part.part;
    }
    EXPECT_EQ(next, parts.size());
    ASSERT_EQ(decoded.shape(), weight.shape());
    const auto [least, most] = error_bounds(encoding.format);
    EXPECT_GT(relative_l2(weight, decoded), least) << name_of(encoding);
    EXPECT_LT(relative_l2(weight, decoded), most) << name_of(encoding);
  }
}

TEST(EncodeRows, AllDialectsDecodeToNearlyTheSameWeight) {
  const Tensor weight = test::random_tensor({160, 384}, DType::kBF16, 2, 0.02f);

  for (const Encoding& encoding : encodings_of(Dialect::kCompressedTensors)) {
    const Encoding modelopt{encoding.format};
    const LinearScales scales = scales_for(encoding, weight);
    const auto decoded = [&](const Encoding& how) {
      return decode_rows(how, linear(), encode_rows(how, linear(), weight, Tensor(), scales, kExact), scales);
    };
    const bool rounds_scales = encoded_tensors(encoding, linear())[1].tensor.dtype == DType::kBF16;
    EXPECT_EQ(test::same_bits(decoded(encoding), decoded(modelopt)), !rounds_scales) << name_of(encoding);
    EXPECT_LT(relative_l2(decoded(modelopt), decoded(encoding)), 0.03) << name_of(encoding);
  }
}

TEST(EncodeRows, GivenMinMaxRowScalesGiveTheSameBytesAsNone) {
  const Tensor weight = test::random_tensor({160, 384}, DType::kF32, 3, 0.02f);

  for (const Encoding& encoding : all_encodings()) {
    const LinearScales scales = scales_for(encoding, weight);
    const auto own = encode_rows(encoding, linear(), weight, Tensor(), scales, kExact);
    const auto given = encode_rows(encoding, linear(), weight, minmax_row_scales(encoding, weight, scales), scales, kExact);
    ASSERT_EQ(own.size(), given.size());
    for (size_t p = 0; p < own.size(); ++p) EXPECT_TRUE(test::same_bits(own[p], given[p])) << name_of(encoding) << " part " << p;
  }
}

TEST(EncodeRows, RowsCanBeEncodedInPiecesOfTheirUnit) {
  const Tensor weight = test::random_tensor({160, 384}, DType::kF32, 4);

  for (const Encoding& encoding : all_encodings()) {
    const LinearScales scales = scales_for(encoding, weight);
    const auto whole = encode_rows(encoding, linear(), weight, Tensor(), scales, kExact);
    const auto top = encode_rows(encoding, linear(), weight.rows(0, 128), Tensor(), scales, kExact);
    const auto bottom = encode_rows(encoding, linear(), weight.rows(128, 160), Tensor(), scales, kExact);
    for (size_t p = 0; p < whole.size(); ++p) {
      const int64_t cut = top[p].dim(0);
      EXPECT_TRUE(test::same_bits(whole[p].rows(0, cut), top[p])) << name_of(encoding);
      EXPECT_TRUE(test::same_bits(whole[p].rows(cut, whole[p].dim(0)), bottom[p])) << name_of(encoding);
    }
  }
}

TEST(EncodeRows, ZerosDecodeToZerosAndTheirScalesAreNot) {
  const Tensor weight = Tensor::zeros({160, 384}, DType::kF32);

  for (const Encoding& encoding : all_encodings()) {
    const LinearScales scales;
    const Tensor decoded = decode_rows(encoding, linear(), encode_rows(encoding, linear(), weight, Tensor(), scales, kExact), scales);
    EXPECT_EQ(amax_of(decoded), 0.0f) << name_of(encoding);
  }
}

TEST(EncodeRows, Nvfp4WithSwappedNibblesIsFarOff) {
  const Tensor weight = test::random_tensor({160, 384}, DType::kBF16, 2, 0.02f);
  const Encoding encoding{Format::kNvfp4};
  const LinearScales scales = scales_for(encoding, weight);
  const auto parts = encode_rows(encoding, linear(), weight, Tensor(), scales, kExact);

  auto* codes = parts[0].data<uint8_t>();
  for (int64_t i = 0; i < parts[0].numel(); ++i) codes[i] = static_cast<uint8_t>(codes[i] << 4 | codes[i] >> 4);

  EXPECT_GT(relative_l2(weight, decode_rows(encoding, linear(), parts, scales)), 1.0);
}

TEST(EncodeRows, OnlyW4A8KeepsOffMinusEight) {
  const Tensor weight = test::tensor_of(std::vector<float>(128, -1.0f), {1, 128}),
               other = test::tensor_of(std::vector<float>(256, -1.0f), {2, 128});
  const Tensor scales = test::tensor_of({0.125f, 0.125f}, {2, 1});  // searched: a clipped group

  const auto low_nibble = [&](Format format) {
    return encode_rows({format}, linear(2, 128), other, scales, {}, kExact)[0].data<uint8_t>()[0] & 15;
  };
  EXPECT_EQ(low_nibble(Format::kInt4), 8);
  EXPECT_EQ(low_nibble(Format::kInt4Fp8), 9);
}

TEST(EncodeRows, WordsOfCompressedTensorsHoldTheFirstInputLowest) {
  std::vector<float> row(8, 0.0f);
  row[0] = 7;
  row[1] = -7;
  const Tensor weight = test::tensor_of(row, {1, 8});
  const Tensor one = test::tensor_of({1.0f}, {1, 1}), rows_one = test::tensor_of({1.0f}, {1});

  const auto four = encode_rows({Format::kInt4, Dialect::kCompressedTensors, 8}, linear(1, 8), weight, one, {}, kExact);
  const auto eight = encode_rows({Format::kInt8WeightOnly, Dialect::kCompressedTensors}, linear(1, 8), weight, rows_one, {}, kExact);

  EXPECT_EQ(static_cast<uint32_t>(four[0].data<int32_t>()[0]), 0x8888881fU);
  EXPECT_EQ(static_cast<uint32_t>(eight[0].data<int32_t>()[0]), 0x80807987U);
  EXPECT_EQ(static_cast<uint32_t>(eight[0].data<int32_t>()[1]), 0x80808080U);
}

/// [E, R, C] -> [E, C, R], element by element.
Tensor turned(const Tensor& x) {
  const int64_t experts = x.dim(0), rows = x.dim(1), columns = x.dim(2), width = dtype_bytes(x.dtype());
  Tensor out = Tensor::empty({experts, columns, rows}, x.dtype());
  for (int64_t e = 0; e < experts; ++e)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        std::memcpy(out.raw() + ((e * columns + c) * rows + r) * width, x.raw() + ((e * rows + r) * columns + c) * width,
                    static_cast<size_t>(width));
  return out;
}

std::vector<Encoding> stacked_encodings() {
  std::vector<Encoding> encodings;
  for (const Encoding& encoding : all_encodings())
    if (layout_fault(encoding, stacked()).empty()) encodings.push_back(encoding);
  return encodings;
}

TEST(EncodeStacked, EachExpertIsEncodedAsItsTranspose) {
  const Tensor weight = test::random_tensor({4, 128, 24}, DType::kBF16, 5, 0.02f), as_rows = turned(weight);

  EXPECT_EQ(stacked_encodings().size(), 10u);
  for (const Encoding& encoding : stacked_encodings()) {
    const LinearScales scales = scales_for(encoding, weight);
    const auto parts = encode_rows(encoding, stacked(), weight, Tensor(), scales, kExact);
    const Tensor decoded = decode_rows(encoding, stacked(), parts, scales);

    size_t next = 0;
    for (const auto& part : encoded_tensors(encoding, stacked()))
      if (part.kind == Kind::kRows) {
        EXPECT_EQ(parts.at(next).shape(), part.tensor.shape) << name_of(encoding);
        EXPECT_EQ(parts.at(next++).dtype(), part.tensor.dtype) << name_of(encoding);
      }
    EXPECT_EQ(parts.size(), next);
    ASSERT_EQ(decoded.shape(), (Shape{4, 24, 128}));
    for (int64_t e = 0; e < 4; ++e) {
      const Tensor matrix = as_rows.rows(e, e + 1).reshaped({24, 128});
      const auto alone = encode_rows(encoding, linear(24, 128), matrix, Tensor(), scales, kExact);
      EXPECT_TRUE(test::same_bits(decoded.rows(e, e + 1).reshaped({24, 128}), decode_rows(encoding, linear(24, 128), alone, scales)))
          << name_of(encoding) << " expert " << e;
      if (encoding.format != Format::kNvfp4) continue;
      for (size_t p = 0; p < parts.size(); ++p) {
        const Tensor back = turned(parts[p].rows(e, e + 1));
        EXPECT_TRUE(test::same_bits(back.reshaped({back.dim(1), back.dim(2)}), alone[p])) << "expert " << e;
      }
    }
  }
}

TEST(EncodeStacked, TakesTheRowScalesOfEachExpert) {
  const Tensor weight = test::random_tensor({2, 128, 24}, DType::kF32, 8), as_rows = turned(weight);

  for (const Encoding& encoding : stacked_encodings()) {
    const LinearScales scales = scales_for(encoding, weight);
    const Tensor first = minmax_row_scales(encoding, as_rows.rows(0, 1).reshaped({24, 128}), scales);
    if (!first.defined()) continue;
    Shape shape = first.shape();
    shape.insert(shape.begin(), 2);
    const Tensor all = Tensor::empty(shape, first.dtype());
    std::copy_n(first.raw(), first.bytes(), all.raw());
    const Tensor second = minmax_row_scales(encoding, as_rows.rows(1, 2).reshaped({24, 128}), scales);
    std::copy_n(second.raw(), second.bytes(), all.raw() + first.bytes());

    const auto own = encode_rows(encoding, stacked(), weight, Tensor(), scales, kExact);
    const auto given = encode_rows(encoding, stacked(), weight, all, scales, kExact);

    for (size_t p = 0; p < own.size(); ++p) EXPECT_TRUE(test::same_bits(own[p], given[p])) << name_of(encoding) << " part " << p;
  }
}

TEST(EncodeStacked, SomeExpertsAreEncodedAsAll) {
  const Tensor weight = test::random_tensor({4, 128, 24}, DType::kF32, 6);

  for (const Encoding& encoding : stacked_encodings()) {
    const LinearScales scales = scales_for(encoding, weight);
    const auto whole = encode_rows(encoding, stacked(), weight, Tensor(), scales, kExact);
    const auto last = encode_rows(encoding, stacked(), weight.rows(3, 4), Tensor(), scales, kExact);
    const auto none = encode_rows(encoding, stacked(), weight.rows(2, 2), Tensor(), scales, kExact);

    for (size_t p = 0; p < whole.size(); ++p) {
      EXPECT_TRUE(test::same_bits(whole[p].rows(3, 4), last[p])) << name_of(encoding);
      EXPECT_EQ(none[p].dim(0), 0) << name_of(encoding);
    }
  }
}

TEST(EncodeStacked, Fp8AlwaysDividesExactly) {
  const Tensor weight = test::random_tensor({4, 128, 24}, DType::kBF16, 7, 0.02f);
  const Encoding fp8{Format::kFp8};
  const LinearScales scales = scales_for(fp8, weight);
  const auto encode = [&](const layers::LinearSpec& spec, const Tensor& w, kernels::Fp8Quotient quotient) {
    return encode_rows(fp8, spec, w, Tensor(), scales, quotient)[0];
  };

  EXPECT_TRUE(test::same_bits(encode(stacked(), weight, kernels::Fp8Quotient::kBf16), encode(stacked(), weight, kExact)));
  const Tensor matrix = weight.reshaped({512, 24});
  EXPECT_FALSE(test::same_bits(encode(linear(), matrix, kernels::Fp8Quotient::kBf16), encode(linear(), matrix, kExact)))
      << "these weights would not tell";
}

TEST(ConstantParts, AreReadBackAsTheyWere) {
  LinearScales scales{0.25f, 0.5f, test::tensor_of(std::vector<float>(384, 2.0f), {384})};

  for (Encoding encoding : all_encodings()) {
    encoding.pre_quant_scale = encoding.dialect == Dialect::kModelOpt;
    LinearScales read;
    for (const auto& part : encoded_tensors(encoding, linear())) {
      if (part.kind == Kind::kRows) continue;
      const Tensor stored = constant_part(part, linear(), scales);
      EXPECT_EQ(stored.shape(), part.tensor.shape) << name_of(encoding);
      EXPECT_EQ(stored.dtype(), part.tensor.dtype) << name_of(encoding);
      read_constant(part, stored, read);
      if (part.part.ends_with("_global_scale")) {
        EXPECT_EQ(*stored.data<float>(), part.part.starts_with(".input") ? 2.0f : 4.0f) << "these divide";
      }
      if (part.kind == Kind::kShape) {
        EXPECT_EQ(stored.data<int64_t>()[1], 384);
      }
    }
    EXPECT_EQ(read.input_scale, has_input_scale(encoding) ? 0.5f : 1.0f) << name_of(encoding);
    if (encoding.format == Format::kFp8 || encoding.format == Format::kNvfp4) {
      EXPECT_EQ(read.weight_scale, 0.25f) << name_of(encoding);
    }
    if (encoding.pre_quant_scale) {
      EXPECT_EQ(test::values_of(read.pre_quant_scale), std::vector<float>(384, 2.0f));
    }
  }
}

TEST(ConstantParts, AnUnsetSmoothingVectorIsOnes) {
  const auto parts = encoded_tensors({Format::kInt4, Dialect::kModelOpt, 0, true}, linear());

  EXPECT_EQ(test::values_of(constant_part(parts.back(), linear(), {})), std::vector<float>(384, 1.0f));
}

TEST(FakeQuantizeInput, DoesWhatTheServerDoes) {
  const Tensor x = test::random_tensor({4, 384}, DType::kF32, 4);
  const auto changed = [&](const Encoding& encoding, const LinearScales& scales = {}) {
    Tensor copy = test::tensor_of(test::values_of(x), {4, 384});
    fake_quantize_input(encoding, scales, copy);
    return copy;
  };
  /// Quantizing activations is quantizing weights with the input's scale.
  const auto as_weights = [&](const Encoding& encoding, float scale) {
    const LinearScales scales{scale, 1.0f, {}};
    return decode_rows(encoding, linear(), encode_rows(encoding, linear(), x, Tensor(), scales, kExact), scales);
  };
  const float fp8 = amax_of(x) / 448.0f, nvfp4 = amax_of(x) / 2688.0f;

  EXPECT_TRUE(test::same_bits(changed({Format::kFp8}, {1.0f, fp8, {}}), as_weights({Format::kFp8}, fp8)));
  EXPECT_TRUE(test::same_bits(changed({Format::kInt4Fp8}, {1.0f, fp8, {}}), as_weights({Format::kFp8}, fp8)));
  EXPECT_TRUE(test::same_bits(changed({Format::kNvfp4}, {1.0f, nvfp4, {}}), as_weights({Format::kNvfp4}, nvfp4)));
  EXPECT_TRUE(test::same_bits(changed({Format::kFp8Channels}), as_weights({Format::kFp8Channels}, 1)));
  EXPECT_TRUE(test::same_bits(changed({Format::kMxfp8}), as_weights({Format::kMxfp8}, 1)));
  for (const Format format : {Format::kNone, Format::kInt8WeightOnly, Format::kInt4, Format::kNvfp4WeightOnly, Format::kFp8Blocks})
    EXPECT_TRUE(test::same_bits(changed({format}), x)) << info(format).name;
  EXPECT_FALSE(test::same_bits(changed({Format::kFp8Blocks, Dialect::kCompressedTensors}), x)) << "its words say so";
}

TEST(FakeQuantizeInput, SmoothsFirst) {
  Tensor x = test::tensor_of({1, 2, 3, 4}, {2, 2});
  LinearScales scales;
  scales.pre_quant_scale = test::tensor_of({2.0f, 0.5f}, {2});

  fake_quantize_input({Format::kInt4, Dialect::kModelOpt, 0, true}, scales, x);

  EXPECT_EQ(test::values_of(x), (std::vector<float>{2, 1, 6, 2}));
}

}  // namespace
}  // namespace ptq::recipes
