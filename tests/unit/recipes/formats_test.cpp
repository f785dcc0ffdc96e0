#include "recipes/formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/expect_error.h"
#include "tests/support/reference_ops.h"

namespace ptq::recipes {
namespace {

layers::LinearSpec linear() {
  layers::LinearSpec spec;
  spec.module = "m";
  spec.out = 24;
  spec.in = 64;
  return spec;
}

/// Four experts whose weights lie as [in, out].
layers::LinearSpec stacked() {
  layers::LinearSpec spec = linear();
  spec.module = "experts.gate_up_proj";
  spec.expert = layers::kAllExperts;
  spec.stack = 4;
  return spec;
}

std::string tensors_of(Format format, const layers::LinearSpec& spec = linear()) {
  std::string text;
  for (const auto& [part, tensor, is_scalar] : encoded_tensors(format, spec)) {
    EXPECT_EQ(tensor.name, spec.tensor(part));
    EXPECT_EQ(is_scalar, tensor.shape.empty());
    text += tensor.name + " " + std::string(dtype_name(tensor.dtype)) + " " + to_string(tensor.shape) + "; ";
  }
  return text;
}

TEST(EncodedTensors, OfEveryFormat) {
  EXPECT_EQ(tensors_of(Format::kFp8), "m.weight F8_E4M3 [24, 64]; m.weight_scale F32 []; m.input_scale F32 []; ");
  EXPECT_EQ(tensors_of(Format::kNvfp4),
            "m.weight U8 [24, 32]; m.weight_scale F8_E4M3 [24, 4]; m.weight_scale_2 F32 []; m.input_scale F32 []; ");
  EXPECT_EQ(tensors_of(Format::kNvfp4WeightOnly), "m.weight U8 [24, 32]; m.weight_scale F8_E4M3 [24, 4]; m.weight_scale_2 F32 []; ");
  test::expect_error(ErrorKind::kBug, "no encoding", [] { tensors_of(Format::kNone); });
}

TEST(EncodedTensors, StackedExpertsKeepInputsBeforeOutputs) {
  EXPECT_EQ(
      tensors_of(Format::kFp8, stacked()),
      "experts.gate_up_proj F8_E4M3 [4, 64, 24]; experts.gate_up_proj_weight_scale F32 []; experts.gate_up_proj_input_scale F32 []; ");
  EXPECT_EQ(tensors_of(Format::kNvfp4, stacked()),
            "experts.gate_up_proj U8 [4, 32, 24]; experts.gate_up_proj_weight_scale F8_E4M3 [4, 4, 24]; "
            "experts.gate_up_proj_weight_scale_2 F32 []; experts.gate_up_proj_input_scale F32 []; ");
  EXPECT_EQ(tensors_of(Format::kNvfp4WeightOnly, stacked()),
            "experts.gate_up_proj U8 [4, 32, 24]; experts.gate_up_proj_weight_scale F8_E4M3 [4, 4, 24]; "
            "experts.gate_up_proj_weight_scale_2 F32 []; ");
}

TEST(EncodedTensors, HaveTheirOwnScalars) {
  const LinearScales scales{0.25f, 0.5f};

  EXPECT_EQ(scalar_value(Format::kFp8, ".weight_scale", scales), 0.25f);
  EXPECT_EQ(scalar_value(Format::kNvfp4, ".weight_scale_2", scales), 0.25f);
  EXPECT_EQ(scalar_value(Format::kNvfp4, ".input_scale", scales), 0.5f);
  test::expect_error(ErrorKind::kBug, "no such scalar", [&] { scalar_value(Format::kFp8, ".weight_scale_2", scales); });
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

TEST(EncodeRows, Fp8LosesAtMostHalfAStep) {
  const Tensor weight = test::random_tensor({33, 128}, DType::kBF16, 1, 0.02f);
  const LinearScales scales{amax_of(weight) / 448.0f, 1.0f};

  const auto parts = encode_rows(Format::kFp8, linear(), weight, scales, kernels::Fp8Quotient::kExact);
  const Tensor decoded = decode_rows(Format::kFp8, linear(), parts, scales);

  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].shape(), (Shape{33, 128}));
  const std::vector<float> w = test::values_of(weight), d = test::values_of(decoded);
  for (size_t i = 0; i < w.size(); ++i)  // three mantissa bits: half a step is 1/16 of the power of two below, and 2⁻¹⁰ among subnormals
    EXPECT_LE(std::fabs(d[i] - w[i]), std::max(std::fabs(w[i]) / 16.0f, scales.weight_scale * 0x1p-10f) * 1.0001f) << i;
  EXPECT_LT(relative_l2(weight, decoded), 0.03);
}

TEST(EncodeRows, Nvfp4LosesLittleOfGaussianWeights) {
  const Tensor weight = test::random_tensor({64, 256}, DType::kBF16, 2, 0.02f);
  const LinearScales scales{amax_of(weight) / 2688.0f, 1.0f};

  for (const Format format : {Format::kNvfp4, Format::kNvfp4WeightOnly}) {
    const auto parts = encode_rows(format, linear(), weight, scales, kernels::Fp8Quotient::kExact);
    const double error = relative_l2(weight, decode_rows(format, linear(), parts, scales));

    ASSERT_EQ(parts.size(), 2u);
    EXPECT_EQ(parts[0].shape(), (Shape{64, 128}));
    EXPECT_EQ(parts[1].shape(), (Shape{64, 16}));
    EXPECT_LT(error, 0.13);
    EXPECT_GT(error, 0.05) << "four bits cannot be this good";
  }
}

TEST(EncodeRows, Nvfp4WithSwappedNibblesIsFarOff) {
  const Tensor weight = test::random_tensor({64, 256}, DType::kBF16, 2, 0.02f);
  const LinearScales scales{amax_of(weight) / 2688.0f, 1.0f};
  const auto parts = encode_rows(Format::kNvfp4, linear(), weight, scales, kernels::Fp8Quotient::kExact);

  auto* codes = parts[0].data<uint8_t>();
  for (int64_t i = 0; i < parts[0].numel(); ++i) codes[i] = static_cast<uint8_t>(codes[i] << 4 | codes[i] >> 4);

  EXPECT_GT(relative_l2(weight, decode_rows(Format::kNvfp4, linear(), parts, scales)), 1.0);
}

TEST(EncodeRows, RowsCanBeEncodedInPieces) {
  const Tensor weight = test::random_tensor({7, 64}, DType::kF32, 3);
  const LinearScales scales{amax_of(weight) / 2688.0f, 1.0f};

  for (const Format format : {Format::kFp8, Format::kNvfp4}) {
    const auto whole = encode_rows(format, linear(), weight, scales, kernels::Fp8Quotient::kExact);
    const auto top = encode_rows(format, linear(), weight.rows(0, 3), scales, kernels::Fp8Quotient::kExact);
    const auto bottom = encode_rows(format, linear(), weight.rows(3, 7), scales, kernels::Fp8Quotient::kExact);

    for (size_t p = 0; p < whole.size(); ++p) {
      EXPECT_TRUE(test::same_bits(whole[p].rows(0, 3), top[p]));
      EXPECT_TRUE(test::same_bits(whole[p].rows(3, 7), bottom[p]));
    }
  }
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

TEST(EncodeStacked, EachExpertIsEncodedAsItsTransposeAndTurnedBack) {
  const Tensor weight = test::random_tensor({4, 64, 24}, DType::kBF16, 5, 0.02f), as_rows = turned(weight);

  for (const Format format : {Format::kFp8, Format::kNvfp4, Format::kNvfp4WeightOnly}) {
    const LinearScales scales{amax_of(weight) / (format == Format::kFp8 ? 448.0f : 2688.0f), 1.0f};
    const auto parts = encode_rows(format, stacked(), weight, scales, kernels::Fp8Quotient::kExact);
    const Tensor decoded = decode_rows(format, stacked(), parts, scales);

    size_t next = 0;
    for (const auto& part : encoded_tensors(format, stacked()))
      if (!part.is_scalar) {
        EXPECT_EQ(parts.at(next).shape(), part.tensor.shape);
        EXPECT_EQ(parts.at(next++).dtype(), part.tensor.dtype);
      }
    EXPECT_EQ(parts.size(), next);
    ASSERT_EQ(decoded.shape(), (Shape{4, 24, 64}));
    for (int64_t e = 0; e < 4; ++e) {
      const Tensor matrix = as_rows.rows(e, e + 1).reshaped({24, 64});
      const auto alone = encode_rows(format, linear(), matrix, scales, kernels::Fp8Quotient::kExact);
      for (size_t p = 0; p < parts.size(); ++p) {
        const Tensor back = turned(parts[p].rows(e, e + 1));
        EXPECT_TRUE(test::same_bits(back.reshaped({back.dim(1), back.dim(2)}), alone[p])) << info(format).name << " expert " << e;
      }
      EXPECT_TRUE(test::same_bits(decoded.rows(e, e + 1).reshaped({24, 64}), decode_rows(format, linear(), alone, scales)));
    }
  }
}

TEST(EncodeStacked, SomeExpertsAreEncodedAsAll) {
  const Tensor weight = test::random_tensor({4, 64, 24}, DType::kF32, 6);
  const LinearScales scales{amax_of(weight) / 2688.0f, 1.0f};

  for (const Format format : {Format::kFp8, Format::kNvfp4}) {
    const auto whole = encode_rows(format, stacked(), weight, scales, kernels::Fp8Quotient::kExact);
    const auto last = encode_rows(format, stacked(), weight.rows(3, 4), scales, kernels::Fp8Quotient::kExact);
    const auto none = encode_rows(format, stacked(), weight.rows(2, 2), scales, kernels::Fp8Quotient::kExact);

    for (size_t p = 0; p < whole.size(); ++p) {
      EXPECT_TRUE(test::same_bits(whole[p].rows(3, 4), last[p]));
      EXPECT_EQ(none[p].dim(0), 0);
    }
  }
}

TEST(EncodeStacked, Fp8AlwaysDividesExactly) {
  const Tensor weight = test::random_tensor({4, 64, 24}, DType::kBF16, 7, 0.02f);
  const LinearScales scales{amax_of(weight) / 448.0f, 1.0f};
  const auto encode = [&](const layers::LinearSpec& spec, const Tensor& w, kernels::Fp8Quotient quotient) {
    return encode_rows(Format::kFp8, spec, w, scales, quotient)[0];
  };

  EXPECT_TRUE(
      test::same_bits(encode(stacked(), weight, kernels::Fp8Quotient::kBf16), encode(stacked(), weight, kernels::Fp8Quotient::kExact)));
  const Tensor matrix = weight.reshaped({256, 24});
  EXPECT_FALSE(
      test::same_bits(encode(linear(), matrix, kernels::Fp8Quotient::kBf16), encode(linear(), matrix, kernels::Fp8Quotient::kExact)))
      << "these weights would not tell";
}

TEST(FakeQuantizeInput, DoesWhatTheServerDoes) {
  const Tensor x = test::random_tensor({4, 32}, DType::kF32, 4);
  const auto copy = [&] { return test::tensor_of(test::values_of(x), {4, 32}); };
  const LinearScales fp8{1.0f, amax_of(x) / 448.0f}, nvfp4{1.0f, amax_of(x) / 2688.0f};
  Tensor as_fp8 = copy(), as_nvfp4 = copy(), as_none = copy(), as_weight_only = copy();

  fake_quantize_input(Format::kFp8, fp8, as_fp8);
  fake_quantize_input(Format::kNvfp4, nvfp4, as_nvfp4);
  fake_quantize_input(Format::kNone, fp8, as_none);
  fake_quantize_input(Format::kNvfp4WeightOnly, nvfp4, as_weight_only);

  // Quantizing activations is quantizing weights with the input's scale.
  const LinearScales as_weights8{fp8.input_scale, 1.0f}, as_weights4{nvfp4.input_scale, 1.0f};
  EXPECT_TRUE(test::same_bits(
      as_fp8,
      decode_rows(Format::kFp8, linear(), encode_rows(Format::kFp8, linear(), x, as_weights8, kernels::Fp8Quotient::kExact), as_weights8)));
  EXPECT_TRUE(test::same_bits(
      as_nvfp4, decode_rows(Format::kNvfp4, linear(), encode_rows(Format::kNvfp4, linear(), x, as_weights4, kernels::Fp8Quotient::kExact),
                            as_weights4)));
  EXPECT_TRUE(test::same_bits(as_none, x));
  EXPECT_TRUE(test::same_bits(as_weight_only, x));
}

TEST(Formats, TheirNamesFindThem) {
  for (const Format format : {Format::kNone, Format::kFp8, Format::kNvfp4, Format::kNvfp4WeightOnly})
    EXPECT_EQ(find_format(info(format).name, "").format, format);
  EXPECT_EQ(find_preset("nvfp4", "").format, "nvfp4");
  test::expect_error(ErrorKind::kUser, "somewhere", [] { find_format("fp5", "somewhere"); });
  test::expect_error(ErrorKind::kUser, "not supported by this version", [] { find_preset("int4_awq", ""); });
}

}  // namespace
}  // namespace ptq::recipes
