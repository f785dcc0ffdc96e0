#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/format/formats.h"
#include "kernels/ops.h"
#include "tests/support/reference_formats.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/golden.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::awkward_weights, test::random_tensor, test::raw_bytes, test::same_bits, test::values_of;

/// What the rule of ops.h gives, straight from the data sheets.
void nvfp4_reference(const Tensor& w, float scale_2, std::vector<uint8_t>& packed, std::vector<uint8_t>& scales) {
  const std::vector<float> values = values_of(w);
  packed.assign(values.size() / 2, 0);
  scales.clear();
  for (size_t block = 0; block < values.size() / 16; ++block) {
    float amax = 0;
    for (size_t i = 0; i < 16; ++i) amax = std::max(amax, std::fabs(values[block * 16 + i]));
    float r = amax / (6.0f * scale_2);
    if (r == 0) r = 1;
    scales.push_back(E4M3::encode(std::min(std::max(r, 0x1p-9f), 448.0f)));
    const float scale = E4M3::decode(scales.back()) * scale_2;
    for (size_t i = 0; i < 16; ++i)
      packed[block * 8 + i / 2] |= static_cast<uint8_t>(E2M1::encode(values[block * 16 + i] / scale) << (i % 2 ? 4 : 0));
  }
}

TEST(QuantizeFp8, GivesTheGoldenCodesWithBothQuotients) {
  int checked = 0;
  const auto vectors = test::golden("fp8.json");
  for (const auto& c : vectors["cases"]) {
    if (c["kind"] != "fp8_weight_per_tensor") continue;
    const Tensor w = test::tensor_of_bits(c["w"], 1);
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      Tensor codes = Tensor::empty(w.shape(), DType::kF8E4M3);
      quantize_fp8(w, test::f32_of(c["scale_f32"]), Fp8Quotient::kExact, codes);
      EXPECT_EQ(raw_bytes(codes), test::bytes_of(c["codes_fp32_division"])) << c["name"];
      if (w.dtype() != DType::kBF16) continue;  // PyTorch rounds the quotient only of bf16 weights
      quantize_fp8(w, test::f32_of(c["scale_f32"]), Fp8Quotient::kBf16, codes);
      EXPECT_EQ(raw_bytes(codes), test::bytes_of(c["codes_modelopt_cpu"])) << c["name"];
      ++checked;
    }
  }
  EXPECT_GE(checked, 3);
}

TEST(QuantizeFp8, EveryInstructionSetAgreesWithTheDataSheet) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor w = awkward_weights(dtype, 33, 16 * 9);
    const float scale = 0.0123f;
    std::vector<uint8_t> exact, rounded;
    for (const float value : values_of(w)) {
      exact.push_back(E4M3::encode(value / scale));
      rounded.push_back(E4M3::encode(round_to_bf16(value / scale)));
    }
    EXPECT_NE(exact, rounded);
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      Tensor codes = Tensor::empty(w.shape(), DType::kU8);
      quantize_fp8(w, scale, Fp8Quotient::kExact, codes);
      EXPECT_EQ(raw_bytes(codes), exact) << static_cast<int>(isa);
      quantize_fp8(w, scale, Fp8Quotient::kBf16, codes);
      EXPECT_EQ(raw_bytes(codes), rounded) << static_cast<int>(isa);
    }
  }
}

/// Every bf16, and the two floats beside it: all ties of the small formats, and what is closest to them.
Tensor every_bf16_and_its_neighbours() {
  std::vector<float> values;
  for (uint32_t upper = 0; upper < 0x10000; ++upper)
    for (const uint32_t bits : {(upper << 16) - 1, upper << 16, (upper << 16) + 1}) values.push_back(std::bit_cast<float>(bits));
  return test::tensor_of(values, {3, 0x10000});
}

TEST(QuantizeFp8, EveryInstructionSetEncodesAsTheDataSheetWhateverItIsGiven) {
  const Tensor w = every_bf16_and_its_neighbours();
  std::vector<uint8_t> expected;
  for (const float value : values_of(w)) expected.push_back(E4M3::encode(value));
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor codes = Tensor::empty(w.shape(), DType::kU8);
    quantize_fp8(w, 1.0f, Fp8Quotient::kExact, codes);
    EXPECT_EQ(raw_bytes(codes), expected) << static_cast<int>(isa);
  }
}

TEST(QuantizeNvfp4, EveryInstructionSetEncodesAsTheDataSheetWhateverItIsGiven) {
  const Tensor w = every_bf16_and_its_neighbours(), ones = Tensor::empty({3, 0x1000}, DType::kU8);
  std::fill_n(ones.data<uint8_t>(), ones.numel(), E4M3::encode(1.0f));
  const std::vector<float> values = values_of(w);
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor packed = Tensor::empty({3, 0x8000}, DType::kU8);
    quantize_nvfp4_static(w, ones, 1.0f, packed);
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) continue;
      const int code = packed.data<uint8_t>()[i / 2] >> (i % 2 ? 4 : 0) & 15;
      ASSERT_EQ(code, E2M1::encode(values[i])) << values[i] << " " << static_cast<int>(isa);
    }
  }
}

TEST(QuantizeNvfp4, GivesTheGoldenCodesScalesAndValues) {
  int checked = 0;
  const auto vectors = test::golden("nvfp4.json");
  for (const auto& c : vectors["cases"]) {
    if (c["kind"] != "nvfp4_weight_dynamic_block_scale") continue;
    const Tensor w = test::tensor_of_bits(c["w"], c["shape"][0]);
    const float scale_2 = test::f32_of(c["weight_scale_2_f32"]);
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      Tensor packed = Tensor::empty({w.dim(0), w.dim(1) / 2}, DType::kU8),
             scales = Tensor::empty({w.dim(0), w.dim(1) / 16}, DType::kF8E4M3);
      Tensor back = Tensor::empty(w.shape(), DType::kF32);
      quantize_nvfp4(w, scale_2, packed, scales);
      dequantize_nvfp4(packed, scales, scale_2, back);
      EXPECT_EQ(raw_bytes(packed), test::bytes_of(c["packed"])) << c["name"];
      EXPECT_EQ(raw_bytes(scales), test::bytes_of(c["weight_scale_e4m3"])) << c["name"];
      // Compared as numbers: the golden values have no -0.
      for (int64_t i = 0; i < w.numel(); ++i) EXPECT_EQ(back.data<float>()[i], test::f32_of(c["dequant_f32"][static_cast<size_t>(i)]));
      ++checked;
    }
  }
  EXPECT_GE(checked, 9);
}

TEST(QuantizeNvfp4, EveryInstructionSetAgreesWithTheRule) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const float scale_2 : {0.02f, 1.0f, 3.1e-5f, 1e-7f, 40.0f})
      for (const int64_t columns : {16, 16 * 7, 16 * 50}) {
        const Tensor w = awkward_weights(dtype, 33, columns);
        std::vector<uint8_t> expected, expected_scales;
        nvfp4_reference(w, scale_2, expected, expected_scales);
        for (const cpu::Isa isa : test::available_isas()) {
          const test::IsaGuard guard(isa);
          Tensor packed = Tensor::empty({33, columns / 2}, DType::kU8), scales = Tensor::empty({33, columns / 16}, DType::kU8);
          quantize_nvfp4(w, scale_2, packed, scales);
          EXPECT_EQ(raw_bytes(packed), expected) << static_cast<int>(isa) << " " << scale_2;
          EXPECT_EQ(raw_bytes(scales), expected_scales) << static_cast<int>(isa) << " " << scale_2;
        }
      }
}

TEST(QuantizeNvfp4, WithItsOwnScalesGivenGivesTheSameCodes) {
  const Tensor w = awkward_weights(DType::kBF16, 33, 16 * 67);
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor packed = Tensor::empty({33, 8 * 67}, DType::kU8), again = Tensor::empty({33, 8 * 67}, DType::kU8);
    Tensor scales = Tensor::empty({33, 67}, DType::kU8);
    quantize_nvfp4(w, 0.02f, packed, scales);
    quantize_nvfp4_static(w, scales, 0.02f, again);
    EXPECT_TRUE(same_bits(packed, again)) << static_cast<int>(isa);
  }
}

TEST(QuantizeNvfp4, ReadsHalfPrecision) {
  const Tensor w = random_tensor({3, 32}, DType::kF16, 5);
  Tensor packed = Tensor::empty({3, 16}, DType::kU8), scales = Tensor::empty({3, 2}, DType::kU8);
  std::vector<uint8_t> expected, expected_scales;
  nvfp4_reference(w, 0.001f, expected, expected_scales);

  quantize_nvfp4(w, 0.001f, packed, scales);

  EXPECT_EQ(raw_bytes(packed), expected);
  EXPECT_EQ(raw_bytes(scales), expected_scales);
}

TEST(QuantizeNvfp4, DoesNotDependOnTheThreadCount) {
  const Tensor w = random_tensor({100, 1024}, DType::kBF16, 6);
  Tensor a = Tensor::empty({100, 512}, DType::kU8), b = Tensor::empty({100, 512}, DType::kU8), s = Tensor::empty({100, 64}, DType::kU8);
  Tensor s2 = Tensor::empty({100, 64}, DType::kU8);
  quantize_nvfp4(w, 0.002f, a, s);

  const test::ThreadsGuard guard(2);
  quantize_nvfp4(w, 0.002f, b, s2);

  EXPECT_TRUE(same_bits(a, b));
  EXPECT_TRUE(same_bits(s, s2));
}

TEST(DequantizeFp8, MultipliesEveryCodeByTheScale) {
  Tensor codes = Tensor::empty({2, 127}, DType::kF8E4M3), w = Tensor::empty({2, 127}, DType::kF32);
  for (int row = 0; row < 2; ++row)
    for (int i = 0; i < 127; ++i) codes.data<uint8_t>()[row * 127 + i] = static_cast<uint8_t>(i + 128 * row);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    dequantize_fp8(codes, 0.37f, w);
    for (int64_t i = 0; i < 254; ++i) ASSERT_EQ(w.data<float>()[i], E4M3::decode(codes.data<uint8_t>()[i]) * 0.37f);
  }
}

TEST(FakeQuantize, Fp8IsQuantizeThenDequantize) {
  Tensor x = awkward_weights(DType::kF32, 5, 48);
  const std::vector<float> before = values_of(x);

  fake_quantize_fp8(x, 0.01f);

  for (size_t i = 0; i < before.size(); ++i) ASSERT_EQ(values_of(x)[i], E4M3::decode(E4M3::encode(before[i] / 0.01f)) * 0.01f);
}

TEST(FakeQuantize, Nvfp4RoundsMagnitudesOnTheScaleOfTheirBlock) {
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    const float scale_2 = 0.002f;
    Tensor x = awkward_weights(DType::kF32, 11, 16 * 13);
    const std::vector<float> before = values_of(x);

    fake_quantize_nvfp4(x, scale_2);

    const std::vector<float> after = values_of(x);
    for (size_t block = 0; block < before.size() / 16; ++block) {
      float amax = 0;
      for (size_t i = 0; i < 16; ++i) amax = std::max(amax, std::fabs(before[block * 16 + i]));
      const float scale = E4M3::decode(E4M3::encode(std::min(std::max(amax / (6.0f * scale_2), 0x1p-9f), 448.0f))) * scale_2;
      for (size_t i = 0; i < 16; ++i) {
        const float magnitude = E2M1::decode(E2M1::encode(std::fabs(before[block * 16 + i]) / scale)) * scale;
        ASSERT_EQ(std::fabs(after[block * 16 + i]), magnitude);
        if (magnitude > 0) {
          ASSERT_EQ(std::signbit(after[block * 16 + i]), std::signbit(before[block * 16 + i]));
        }
      }
    }
  }
}

TEST(Quantize, RejectsScalesAndShapesThatCannotBe) {
  const Tensor w = Tensor::zeros({2, 24}, DType::kF32);
  Tensor packed = Tensor::empty({2, 12}, DType::kU8), scales = Tensor::empty({2, 2}, DType::kU8),
         codes = Tensor::empty({2, 24}, DType::kU8);

  EXPECT_THROW(quantize_nvfp4(w, 1.0f, packed, scales), Error);
  EXPECT_THROW(quantize_fp8(w, 0.0f, Fp8Quotient::kExact, codes), Error);
}

}  // namespace
}  // namespace ptq::kernels
