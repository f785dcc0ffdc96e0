// The microscaling formats against plain loops, on every instruction set.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "tests/support/reference_formats.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::awkward_weights, test::raw_bytes, test::Ties, test::values_of;

/// Weights whose blocks lie at both ends of the range of a float, and on both sides of the powers of two that change a scale.
Tensor weights_of_all_sizes(DType dtype, int64_t rows, int64_t columns) {
  std::vector<float> values = values_of(awkward_weights(DType::kF32, rows, columns));
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t block = i / 32;
    if (block % 5 == 1) values[i] *= std::ldexp(1.0f, static_cast<int>(block % 90) - 110);
    if (block % 5 == 2 && std::fabs(values[i]) < 1e3f) values[i] *= std::ldexp(1.0f, static_cast<int>(block % 100));
    if (block % 7 == 3) {
      const float edge = std::ldexp(block % 2 ? 6.0f : 448.0f, static_cast<int>(block % 200) - 100);
      values[i] = i % 32 == 5 ? block % 3 == 0 ? edge : std::nextafter(edge, block % 3 == 1 ? 0.0f : 1e38f) : edge * 0.125f;
    }
  }
  return test::tensor_of(values, {rows, columns}, dtype);
}

TEST(QuantizeMxfp8, AgreesWithTheDefinition) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t columns : {32, 32 * 7, 32 * 33}) {
      const Tensor w = weights_of_all_sizes(dtype, 35, columns);
      const test::QuantizedMx expected = test::quantize_mxfp8(w);
      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard guard(isa);
        Tensor codes = Tensor::empty(w.shape(), DType::kF8E4M3), scales = Tensor::empty({35, columns / 32}, DType::kF8E8M0);
        Tensor back = Tensor::empty(w.shape(), DType::kF32);
        quantize_mxfp8(w, codes, scales);
        dequantize_mxfp8(codes, scales, back);
        ASSERT_EQ(raw_bytes(scales), expected.scales) << static_cast<int>(isa) << " " << columns;
        ASSERT_EQ(raw_bytes(codes), expected.codes) << static_cast<int>(isa) << " " << columns;
        ASSERT_EQ(values_of(back), expected.values) << static_cast<int>(isa) << " " << columns;
      }
    }
}

TEST(QuantizeMxfp4, AgreesWithTheDefinition) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t columns : {32, 32 * 7, 32 * 33}) {
      const Tensor w = weights_of_all_sizes(dtype, 35, columns);
      const test::QuantizedMx expected = test::quantize_mxfp4(w, Ties::kTowardZero);
      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard guard(isa);
        Tensor packed = Tensor::empty({35, columns / 2}, DType::kU8), scales = Tensor::empty({35, columns / 32}, DType::kF8E8M0);
        Tensor back = Tensor::empty(w.shape(), DType::kF32);
        quantize_mxfp4(w, packed, scales);
        dequantize_mxfp4(packed, scales, back);
        ASSERT_EQ(raw_bytes(scales), expected.scales) << static_cast<int>(isa) << " " << columns;
        ASSERT_EQ(raw_bytes(packed), test::pack_nibbles(expected.codes)) << static_cast<int>(isa) << " " << columns;
        ASSERT_EQ(values_of(back), expected.values) << static_cast<int>(isa) << " " << columns;
      }
    }
}

TEST(QuantizeMx, ReadsHalfPrecision) {
  const Tensor w = test::random_tensor({3, 64}, DType::kF16, 5);
  Tensor codes = Tensor::empty(w.shape(), DType::kU8), packed = Tensor::empty({3, 32}, DType::kU8),
         scales = Tensor::empty({3, 2}, DType::kU8);

  quantize_mxfp8(w, codes, scales);
  EXPECT_EQ(raw_bytes(codes), test::quantize_mxfp8(w).codes);
  quantize_mxfp4(w, packed, scales);
  EXPECT_EQ(raw_bytes(packed), test::pack_nibbles(test::quantize_mxfp4(w, Ties::kTowardZero).codes));
}

TEST(QuantizeMx, ABlockOfZerosHasScaleCodeZero) {
  const Tensor w = test::tensor_of(std::vector<float>(32, -0.0f), {1, 32});
  Tensor codes = Tensor::empty({1, 32}, DType::kU8), packed = Tensor::empty({1, 16}, DType::kU8), scale = Tensor::empty({1, 1}, DType::kU8);

  quantize_mxfp4(w, packed, scale);
  EXPECT_EQ(raw_bytes(scale), std::vector<uint8_t>{0});
  EXPECT_EQ(raw_bytes(packed), std::vector<uint8_t>(16, 0x88));

  quantize_mxfp8(w, codes, scale);
  EXPECT_EQ(raw_bytes(scale), std::vector<uint8_t>{0});
  EXPECT_EQ(raw_bytes(codes), std::vector<uint8_t>(32, 0x80)) << "E4M3 keeps the sign of zero";
}

TEST(QuantizeMx, ANaNMakesTheScaleOfItsBlockNaN) {
  std::vector<float> values(64, 1.0f);
  values[40] = std::numeric_limits<float>::quiet_NaN();
  const Tensor w = test::tensor_of(values, {1, 64});
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor codes = Tensor::empty({1, 64}, DType::kU8), scales = Tensor::empty({1, 2}, DType::kU8),
           back = Tensor::empty({1, 64}, DType::kF32);
    quantize_mxfp8(w, codes, scales);
    dequantize_mxfp8(codes, scales, back);
    EXPECT_EQ(scales.data<uint8_t>()[0], 119);
    EXPECT_EQ(scales.data<uint8_t>()[1], 255);
    EXPECT_EQ(values_of(back)[0], 1.0f);
    EXPECT_TRUE(std::isnan(values_of(back)[40]));
  }
}

TEST(FakeQuantizeMx, IsQuantizeThenDequantizeWithTiesToEven) {
  const Tensor before = weights_of_all_sizes(DType::kF32, 33, 32 * 9);
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor eight = weights_of_all_sizes(DType::kF32, 33, 32 * 9), four = weights_of_all_sizes(DType::kF32, 33, 32 * 9);
    fake_quantize_mxfp8(eight);
    fake_quantize_mxfp4(four);
    ASSERT_EQ(values_of(eight), test::quantize_mxfp8(before).values) << static_cast<int>(isa);
    ASSERT_EQ(values_of(four), test::quantize_mxfp4(before, Ties::kEven).values) << static_cast<int>(isa);
  }
}

TEST(QuantizeMx, RejectsShapesThatCannotBe) {
  const Tensor w = Tensor::zeros({2, 48}, DType::kF32);
  Tensor x = Tensor::zeros({2, 48}, DType::kF32), codes = Tensor::empty({2, 48}, DType::kU8), scales = Tensor::empty({2, 2}, DType::kU8);

  EXPECT_THROW(quantize_mxfp8(w, codes, scales), Error);
  EXPECT_THROW(quantize_mxfp4(w, codes, scales), Error);
  EXPECT_THROW(fake_quantize_mxfp8(x), Error);
}

}  // namespace
}  // namespace ptq::kernels
