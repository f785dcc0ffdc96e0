// Every vector of number formats in the shared test material, on every instruction set. What the vectors are: README.md beside them.

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/format/formats.h"
#include "kernels/ops.h"
#include "tests/support/reference_formats.h"
#include "tests/support/reference_ops.h"
#include "tests/support/shared_folder.h"
#include "tests/unit/kernels/golden.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using nlohmann::json, test::bytes_of, test::f32_of, test::raw_bytes, test::values_of;

json vectors(const std::string& shared, const std::string& name) {
  std::ifstream file(shared + "/vectors/" + name);
  return json::parse(file);
}
std::vector<float> floats_of(const json& list) {
  std::vector<float> values;
  for (const auto& digits : list) values.push_back(f32_of(digits));
  return values;
}
Tensor matrix_of(const json& list, const json& shape) { return test::tensor_of_bits(list, shape[0]); }
Tensor column_of(const json& list) { return test::tensor_of_bits(list, 1).reshaped({static_cast<int64_t>(list.size())}); }
std::vector<uint8_t> integer_codes(const json& list) {
  std::vector<uint8_t> codes;
  for (const auto& code : list) codes.push_back(static_cast<uint8_t>(code.get<int>()));
  return codes;
}
/// Runs body on every instruction set for each case of one kind; there must be `count` of them.
template <class Body>
void each_case(const json& file, const std::string& kind, int count, Body body) {
  int seen = 0;
  for (const auto& c : file["cases"]) {
    if (c["kind"] != kind) continue;
    ++seen;
    SCOPED_TRACE(kind + " " + c.value("name", ""));
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      body(c);
    }
  }
  EXPECT_EQ(seen, count) << kind;
}
/// One scale, made by the op from one amax.
float scale_of(float amax, float format_max) {
  Tensor scale = test::tensor_of({amax}, {1});
  amaxes_to_scales(scale, format_max);
  return scale.data<float>()[0];
}

TEST(FormatVectors, E4m3) {
  PTQ_NEEDS_SHARED(shared);
  const json file = vectors(shared, "e4m3.json");
  for (size_t code = 0; code < 256; ++code) {
    const float value = E4M3::decode(static_cast<uint8_t>(code)), expected = f32_of(file["decode_table_f32"][code]);
    EXPECT_TRUE(std::isnan(value) ? std::isnan(expected) : std::bit_cast<uint32_t>(value) == std::bit_cast<uint32_t>(expected)) << code;
  }
  EXPECT_EQ(file["candidates_div_448"].size(), 126u);
  for (size_t i = 0; i < 126; ++i)
    EXPECT_EQ(E4M3::decode(static_cast<uint8_t>(i + 1)) / 448.0f, f32_of(file["candidates_div_448"][i])) << i;
  for (const auto& c : file["cases"])
    for (size_t i = 0; i < c["in_f32"].size(); ++i)
      EXPECT_EQ(E4M3::encode(f32_of(c["in_f32"][i])), bytes_of(c["codes_saturating"])[i]) << c["name"] << i;
}

TEST(FormatVectors, E2m1WithBothRoundings) {
  PTQ_NEEDS_SHARED(shared);
  const json file = vectors(shared, "e2m1.json");
  for (uint8_t code = 0; code < 16; ++code) EXPECT_EQ(E2M1::decode(code), file["values"][code].get<float>());
  for (const auto& c : file["cases"]) {
    if (c["name"] == "nan") continue;  // what the tool made of it is an accident; NaN is an error here, found by the observer
    for (size_t i = 0; i < c["in_f32"].size(); ++i) {
      const float x = f32_of(c["in_f32"][i]);
      EXPECT_EQ(E2M1::encode(x), c["codes_nvfp4"][i].get<int>()) << x;
      EXPECT_EQ(E2M1::encode_ties_to_zero(x), c["codes_mxfp4_modelopt"][i].get<int>()) << x;
    }
  }
}

TEST(FormatVectors, Fp8PerTensorPerChannelAndPerBlock) {
  PTQ_NEEDS_SHARED(shared);
  const json file = vectors(shared, "fp8.json");
  each_case(file, "fp8_weight_per_tensor", 4, [](const json& c) {
    const Tensor w = test::tensor_of_bits(c["w"], 1);
    const float scale = f32_of(c["scale_f32"]);
    EXPECT_EQ(scale_of(amax(w).value, E4M3::kMax), scale);
    Tensor codes = Tensor::empty(w.shape(), DType::kF8E4M3);
    quantize_fp8(w, scale, Fp8Quotient::kExact, codes);
    EXPECT_EQ(raw_bytes(codes), bytes_of(c["codes_fp32_division"]));
    quantize_fp8(w, scale, w.dtype() == DType::kBF16 ? Fp8Quotient::kBf16 : Fp8Quotient::kExact, codes);
    EXPECT_EQ(raw_bytes(codes), bytes_of(c["codes_modelopt_cpu"]));
  });
  each_case(file, "fp8_weight_per_channel", 3, [](const json& c) {
    const Tensor w = matrix_of(c["w_bf16"], c["shape"]);
    Tensor scales = Tensor::empty({w.dim(0)}, DType::kF32), codes = Tensor::empty(w.shape(), DType::kF8E4M3);
    row_amax(w, scales);
    amaxes_to_scales(scales, E4M3::kMax);
    EXPECT_EQ(values_of(scales), floats_of(c["scale_f32"]));
    quantize_fp8_rows(w, scales, codes);
    EXPECT_EQ(raw_bytes(codes), bytes_of(c["codes"]));
  });
  each_case(file, "fp8_weight_2d_block_small_example", 3, [](const json& c) {
    const Tensor w = matrix_of(c["w_bf16"], c["shape"]);
    const ScaleBlock block{c["block"], c["block"]};
    Tensor scales = Tensor::empty({c["scale_shape"][0], c["scale_shape"][1]}, DType::kF32),
           codes = Tensor::empty(w.shape(), DType::kF8E4M3);
    block_amax(w, block, scales);
    amaxes_to_scales(scales, E4M3::kMax);
    EXPECT_EQ(values_of(scales), floats_of(c["scale_f32"]));
    quantize_fp8_blocks(w, scales, block, codes);
    EXPECT_EQ(raw_bytes(codes), bytes_of(c["codes"]));
  });
}

TEST(FormatVectors, Fp8PerToken) {
  PTQ_NEEDS_SHARED(shared);
  each_case(vectors(shared, "fp8.json"), "fp8_act_per_token_dynamic_fakequant", 3, [](const json& c) {
    const Tensor bf16 = matrix_of(c["x_bf16"], c["shape"]);
    Tensor x = Tensor::empty(bf16.shape(), DType::kF32), rounded = Tensor::empty(bf16.shape(), DType::kBF16);
    convert(bf16, x);
    fake_quantize_fp8_groups(x, x.dim(1));
    convert(x, rounded);
    // The tool's simulation takes a token below 2⁻²⁴ for zeros. Servers do not, and neither does its export: such a token keeps its values.
    const Tensor expected = c["name"] == "below_eps" ? bf16 : matrix_of(c["fakequant_bf16"], c["shape"]);
    if (c["name"] == "below_eps") {
      EXPECT_EQ(values_of(matrix_of(c["fakequant_bf16"], c["shape"])), std::vector<float>(4, 0.0f));
      for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(values_of(x)[i], values_of(expected)[i], std::fabs(values_of(expected)[i]) / 16);
    } else {
      EXPECT_EQ(values_of(rounded), values_of(expected));
    }
  });
}

TEST(FormatVectors, Int8) {
  PTQ_NEEDS_SHARED(shared);
  const json file = vectors(shared, "int8_int4.json");
  each_case(file, "int8_weight_per_channel", 4, [](const json& c) {
    const Tensor w = matrix_of(c["w_f32"], c["shape"]);
    Tensor scales = Tensor::empty({w.dim(0)}, DType::kF32), codes = Tensor::empty(w.shape(), DType::kI8);
    row_amax(w, scales);
    EXPECT_EQ(values_of(scales), floats_of(c["amax"]));
    amaxes_to_scales(scales, INT8::kMax);
    EXPECT_EQ(values_of(scales), floats_of(c["scale_f32"]));
    quantize_int8_rows(w, scales, codes);
    EXPECT_EQ(raw_bytes(codes), integer_codes(c["codes_i8"]));
    // The tool's simulation multiplies by 127/amax where its export divides by amax/127: equal to two roundings, but for rows below 2⁻²⁴,
    // which the simulation takes for zeros.
    Tensor back = Tensor::empty(w.shape(), DType::kF32);
    dequantize_int8_rows(codes, scales, back);
    for (size_t i = 0; i < values_of(w).size(); ++i) {
      if (std::fabs(values_of(w)[i]) <= 0x1p-24f) continue;
      const float expected = floats_of(c["fakequant_f32"])[i];
      EXPECT_NEAR(values_of(back)[i], expected, std::fabs(expected) * 0x1p-22f) << i;
    }
  });
  each_case(file, "int8_fakequant_per_tensor_wide", 3, [](const json& c) {
    Tensor x = column_of(c["x_f32"]);
    if (c["amax"].get<float>() > 0x1p-24f) {
      fake_quantize_int8(x, scale_of(c["amax"], INT8::kMax));
      EXPECT_EQ(values_of(x), floats_of(c["narrow_false_f32"]));
      return;
    }
    // Here the simulation gives zeros. An amax of 0 has scale 1 (what it is of was zeros), a tiny one its own.
    const std::vector<float> before = values_of(x);
    fake_quantize_int8(x, scale_of(c["amax"], INT8::kMax));
    for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(values_of(x)[i], before[i], 1e-8f);
  });
}

TEST(FormatVectors, Int4) {
  PTQ_NEEDS_SHARED(shared);
  each_case(vectors(shared, "int8_int4.json"), "int4_block_weight", 3, [](const json& c) {
    const Tensor w = matrix_of(c["w_f32"], c["shape"]);
    const auto group = c["block"].get<int64_t>();
    Tensor scales = Tensor::empty({w.dim(0), w.dim(1) / group}, DType::kF32), codes = Tensor::empty(w.shape(), DType::kI8);
    Tensor packed = Tensor::empty({c["packed_shape"][0], c["packed_shape"][1]}, DType::kU8);
    block_amax(w, {1, group}, scales);
    EXPECT_EQ(values_of(scales), floats_of(c["amax"]));
    amaxes_to_scales(scales, INT4::kMax);
    EXPECT_EQ(values_of(scales), floats_of(c["scale_f32"]));
    quantize_int4_groups(w, scales, group, codes);
    EXPECT_EQ(raw_bytes(codes), integer_codes(c["codes_i4"]));
    pack_int4_row_pairs(codes, packed);
    EXPECT_EQ(raw_bytes(packed), bytes_of(c["packed_hex"]));
  });
}

TEST(FormatVectors, Mx) {
  PTQ_NEEDS_SHARED(shared);
  const json file = vectors(shared, "mx.json");
  each_case(file, "mxfp4_weight", 5, [](const json& c) {
    const Tensor w = matrix_of(c["w_bf16"], c["shape"]);
    Tensor packed = Tensor::empty({w.dim(0), w.dim(1) / 2}, DType::kU8), scales = Tensor::empty({w.dim(0), w.dim(1) / 32}, DType::kU8);
    quantize_mxfp4(w, packed, scales);
    EXPECT_EQ(raw_bytes(scales), integer_codes(c["e8m0_modelopt_ceil"]));
    EXPECT_EQ(raw_bytes(packed), bytes_of(c["packed"]));
  });
  each_case(file, "mxfp8_weight", 4, [](const json& c) {
    const Tensor w = matrix_of(c["w_bf16"], c["shape"]);
    Tensor codes = Tensor::empty(w.shape(), DType::kU8), scales = Tensor::empty({w.dim(0), w.dim(1) / 32}, DType::kU8);
    quantize_mxfp8(w, codes, scales);
    EXPECT_EQ(raw_bytes(scales), integer_codes(c["e8m0"]));
    EXPECT_EQ(raw_bytes(codes), bytes_of(c["codes"]));
  });
}

TEST(FormatVectors, Nvfp4WithScalesMadeOnTheFly) {
  PTQ_NEEDS_SHARED(shared);
  const json file = vectors(shared, "nvfp4.json");
  each_case(file, "nvfp4_weight_dynamic_block_scale", 9, [](const json& c) {
    const Tensor w = matrix_of(c["w"], c["shape"]);
    const float scale_2 = f32_of(c["weight_scale_2_f32"]);
    Tensor packed = Tensor::empty({w.dim(0), w.dim(1) / 2}, DType::kU8), scales = Tensor::empty({w.dim(0), w.dim(1) / 16}, DType::kU8);
    Tensor back = Tensor::empty(w.shape(), DType::kF32);
    EXPECT_EQ(f32_of(c["tensor_amax_f32"]) / 2688.0f, scale_2);
    quantize_nvfp4(w, scale_2, packed, scales);
    EXPECT_EQ(raw_bytes(scales), bytes_of(c["weight_scale_e4m3"]));
    EXPECT_EQ(raw_bytes(packed), bytes_of(c["packed"]));
    dequantize_nvfp4(packed, scales, scale_2, back);
    EXPECT_EQ(values_of(back), floats_of(c["dequant_f32"]));
  });
  for (const auto& c : file["input_scale"]) EXPECT_EQ(scale_of(c["amax"], 2688.0f), f32_of(c["input_scale_f32"]));
  const auto &fused = file["fused"], &w4a8 = file["w4a8"];
  EXPECT_EQ(scale_of(std::max(fused["gate_amax"].get<float>(), fused["up_amax"].get<float>()), 2688.0f),
            f32_of(fused["weight_scale_2_f32"]));
  EXPECT_EQ(scale_of(w4a8["amax"], 448.0f), f32_of(w4a8["weight_scale_2_f32"]));
}

TEST(FormatVectors, Nvfp4WithAmaxesOfASearch) {
  PTQ_NEEDS_SHARED(shared);
  each_case(vectors(shared, "nvfp4.json"), "nvfp4_weight_static_block_amax", 6, [](const json& c) {
    const Tensor w = matrix_of(c["w_bf16"], c["shape"]), amaxes = column_of(c["block_amax"]);
    const float scale_max = c["four_over_six"].get<bool>() ? 256.0f : 448.0f, global_amax = c["global_amax"];
    const float scale_2 = f32_of(c["weight_scale_2_f32"]);
    Tensor packed = Tensor::empty({w.dim(0), w.dim(1) / 2}, DType::kU8), scales = Tensor::empty(amaxes.shape(), DType::kF8E4M3);
    Tensor back = Tensor::empty(w.shape(), DType::kF32);
    EXPECT_EQ(scale_of(global_amax, 6.0f * scale_max), scale_2);
    nvfp4_static_scales(amaxes, global_amax, scale_max, scales);
    EXPECT_EQ(raw_bytes(scales), bytes_of(c["weight_scale_e4m3"]));
    quantize_nvfp4_static(w, scales, scale_2, packed);
    EXPECT_EQ(raw_bytes(packed), bytes_of(c["packed"]));
    dequantize_nvfp4(packed, scales, scale_2, back);
    for (size_t i = 0; i < values_of(back).size(); ++i) EXPECT_FLOAT_EQ(values_of(back)[i], c["dequant_dec"][i].get<float>());
  });
}

TEST(FormatVectors, ScalesOfTheKvCache) {
  PTQ_NEEDS_SHARED(shared);
  each_case(vectors(shared, "kv_cache.json"), "fp8_or_nvfp4", 3,
            [](const json& c) { EXPECT_EQ(scale_of(c["amax"], 448.0f), f32_of(c["scale_f32"])); });
}

}  // namespace
}  // namespace ptq::kernels
