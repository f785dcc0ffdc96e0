// Quantizers with a scale for each row, block or group, against plain loops, on every instruction set.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "tests/support/reference_formats.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::awkward_weights, test::Element, test::raw_bytes, test::values_of;

constexpr DType kFloats[] = {DType::kF32, DType::kBF16, DType::kF16};
/// Odd ones, and ones with more rows and columns than a block.
const Shape kShapes[] = {{1, 1}, {3, 7}, {33, 130}, {260, 390}, {2, 1024}};
const ScaleBlock kBlocks[] = {{128, 128}, {1, 16}, {1, 129}, {4, 4}, {7, 1}, {1000, 1000}};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
Tensor weights(DType dtype, const Shape& shape) {
  // Conversion to f16 is by search in the tests, so those are small.
  return dtype == DType::kF16 ? test::random_tensor({3, 37}, dtype, 4) : awkward_weights(dtype, shape[0], shape[1]);
}
Tensor tensor_of_scales(const std::vector<float>& scales) { return test::tensor_of(scales, {static_cast<int64_t>(scales.size())}); }

TEST(BlockAmax, IsTheLargestMagnitudeOfEveryBlock) {
  for (const DType dtype : kFloats)
    for (const Shape& shape : kShapes)
      for (const ScaleBlock& block : kBlocks) {
        const Tensor x = weights(dtype, shape);
        const std::vector<float> expected = test::block_amaxes(x, block);
        for (const cpu::Isa isa : test::available_isas()) {
          const test::IsaGuard guard(isa);
          Tensor amaxes = Tensor::empty({divide_up(x.dim(0), block.rows), divide_up(x.dim(1), block.columns)}, DType::kF32);
          block_amax(x, block, amaxes);
          ASSERT_EQ(values_of(amaxes), expected)
              << static_cast<int>(isa) << " " << ptq::to_string(x.shape()) << block.rows << block.columns;
        }
      }
}

TEST(BlockAmax, OfRowsIsOnePerRow) {
  const Tensor x = awkward_weights(DType::kBF16, 33, 130);
  Tensor amaxes = Tensor::empty({33, 1}, DType::kF32);

  row_amax(x, amaxes);

  EXPECT_EQ(values_of(amaxes), test::block_amaxes(x, {1, 130}));
}

TEST(BlockAmax, SaysWhichBlockIsNotFinite) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    std::vector<float> values(4 * 32, 1.0f);
    values[5] = -std::numeric_limits<float>::infinity();
    values[32 + 20] = std::numeric_limits<float>::quiet_NaN();
    values[32 + 21] = std::numeric_limits<float>::infinity();
    const Tensor x = test::tensor_of(values, {4, 32}, dtype);
    Tensor amaxes = Tensor::empty({2, 2}, DType::kF32);

    block_amax(x, {2, 16}, amaxes);

    EXPECT_TRUE(std::isinf(values_of(amaxes)[0]));
    EXPECT_TRUE(std::isnan(values_of(amaxes)[1]));
    EXPECT_EQ(values_of(amaxes)[2], 1.0f);
    EXPECT_THROW(amaxes_to_scales(amaxes, 448.0f), Error);
  }
}

TEST(AmaxesToScales, NeverGiveZero) {
  Tensor amaxes = test::tensor_of({0.0f, 448.0f, 1.0f, 0x1p-149f}, {4});

  amaxes_to_scales(amaxes, 448.0f);

  EXPECT_EQ(values_of(amaxes), (std::vector<float>{1.0f, 1.0f, 1.0f / 448.0f, 0x1p-126f / 448.0f}));
  EXPECT_GT(values_of(amaxes)[3], 0.0f);
}

TEST(QuantizeFp8, OfRowsAndBlocksAgreeWithTheDefinition) {
  for (const DType dtype : kFloats)
    for (const Shape& shape : kShapes)
      for (const bool by_rows : {true, false}) {
        const Tensor w = weights(dtype, shape);
        const ScaleBlock block = by_rows ? ScaleBlock{1, w.dim(1)} : ScaleBlock{};
        const std::vector<float> scales = test::scales_of(test::block_amaxes(w, block), 448.0f);
        const test::Quantized expected = test::quantize_blocks(w, scales, block, Element::kE4M3);
        const Tensor scale_tensor = tensor_of_scales(scales);
        for (const cpu::Isa isa : test::available_isas()) {
          const test::IsaGuard guard(isa);
          Tensor codes = Tensor::empty(w.shape(), DType::kF8E4M3), back = Tensor::empty(w.shape(), DType::kF32);
          if (by_rows) {
            quantize_fp8_rows(w, scale_tensor, codes);
            dequantize_fp8_rows(codes, scale_tensor, back);
          } else {
            quantize_fp8_blocks(w, scale_tensor, block, codes);
            dequantize_fp8_blocks(codes, scale_tensor, block, back);
          }
          ASSERT_EQ(raw_bytes(codes), expected.codes) << static_cast<int>(isa) << " " << ptq::to_string(w.shape());
          ASSERT_EQ(values_of(back), expected.values);
        }
      }
}

TEST(QuantizeInt8, OfRowsAgreesWithTheDefinition) {
  for (const DType dtype : kFloats)
    for (const Shape& shape : kShapes) {
      const Tensor w = weights(dtype, shape);
      const ScaleBlock row{1, w.dim(1)};
      std::vector<float> scales = test::scales_of(test::block_amaxes(w, row), 127.0f);
      if (scales.size() > 2) scales[2] *= 0.5f;  // a clipped row reaches -128
      const test::Quantized expected = test::quantize_blocks(w, scales, row, Element::kInt8);
      const Tensor scale_tensor = tensor_of_scales(scales);
      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard guard(isa);
        Tensor codes = Tensor::empty(w.shape(), DType::kI8), back = Tensor::empty(w.shape(), DType::kF32);
        quantize_int8_rows(w, scale_tensor, codes);
        dequantize_int8_rows(codes, scale_tensor, back);
        ASSERT_EQ(raw_bytes(codes), expected.codes) << static_cast<int>(isa) << " " << ptq::to_string(w.shape());
        ASSERT_EQ(values_of(back), expected.values);
      }
    }
}

TEST(QuantizeInt4, OfGroupsAgreesWithTheDefinition) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t group : {1, 8, 13, 128}) {
      const Tensor w = awkward_weights(dtype, 33, 3 * group);
      const ScaleBlock block{1, group};
      std::vector<float> scales = test::scales_of(test::block_amaxes(w, block), 7.0f);
      scales[4] *= 0.5f;  // a clipped group reaches -8
      const test::Quantized expected = test::quantize_blocks(w, scales, block, Element::kInt4);
      const Tensor scale_tensor = tensor_of_scales(scales).reshaped({33, 3});
      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard guard(isa);
        Tensor codes = Tensor::empty(w.shape(), DType::kI8), back = Tensor::empty(w.shape(), DType::kF32);
        quantize_int4_groups(w, scale_tensor, group, codes);
        dequantize_int4_groups(codes, scale_tensor, group, back);
        ASSERT_EQ(raw_bytes(codes), expected.codes) << static_cast<int>(isa) << " " << group;
        ASSERT_EQ(values_of(back), expected.values);
      }
    }
}

Tensor every_int4_code(int64_t rows, int64_t columns) {
  Tensor codes = Tensor::empty({rows, columns}, DType::kI8);
  for (int64_t i = 0; i < codes.numel(); ++i) codes.data<int8_t>()[i] = static_cast<int8_t>(i * 7 % 16 - 8);
  return codes;
}

TEST(PackInt4, PutsTwoRowsIntoAByteAndTakesThemOutAgain) {
  for (const int64_t columns : {1, 7, 130}) {
    const Tensor codes = every_int4_code(6, columns);
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      Tensor packed = Tensor::empty({3, columns}, DType::kU8), back = Tensor::empty(codes.shape(), DType::kI8);
      pack_int4_row_pairs(codes, packed);
      unpack_int4_row_pairs(packed, back);
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t c = 0; c < columns; ++c) {
          const int even = codes.data<int8_t>()[2 * r * columns + c], odd = codes.data<int8_t>()[(2 * r + 1) * columns + c];
          ASSERT_EQ(packed.data<uint8_t>()[r * columns + c], (even & 15) + (odd & 15) * 16);
        }
      ASSERT_TRUE(test::same_bits(back, codes));
    }
  }
}

TEST(PackInt4, PutsEightInputsIntoAWordAndTakesThemOutAgain) {
  for (const int64_t columns : {1, 7, 8, 16, 130, 1031}) {
    const Tensor codes = every_int4_code(3, columns);
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      Tensor words = Tensor::empty({3, divide_up(columns, 8)}, DType::kI32), back = Tensor::empty(codes.shape(), DType::kI8);
      pack_int4_words(codes, words);
      unpack_int4_words(words, back);
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t c = 0; c < words.dim(1) * 8; ++c) {
          const auto word = static_cast<uint32_t>(words.data<int32_t>()[r * words.dim(1) + c / 8]);
          const int expected = c < columns ? codes.data<int8_t>()[r * columns + c] + 8 : 0;
          ASSERT_EQ(word >> 4 * (c % 8) & 15u, static_cast<uint32_t>(expected)) << columns << " " << c;
        }
      ASSERT_TRUE(test::same_bits(back, codes));
    }
  }
}

TEST(PackInt4, OfTheCodesInOrderIsTheWordThatReadersExpect) {
  Tensor codes = Tensor::empty({1, 16}, DType::kI8), words = Tensor::empty({1, 2}, DType::kI32);
  for (int i = 0; i < 16; ++i) codes.data<int8_t>()[i] = static_cast<int8_t>(i - 8);

  pack_int4_words(codes, words);

  EXPECT_EQ(static_cast<uint32_t>(words.data<int32_t>()[0]), 0x76543210u);
  EXPECT_EQ(static_cast<uint32_t>(words.data<int32_t>()[1]), 0xfedcba98u);
}

TEST(FakeQuantize, OfGroupsIsQuantizeThenDequantizeWithTheirOwnScales) {
  for (const bool is_fp8 : {true, false})
    for (const Shape& shape : kShapes)
      for (const int64_t group : {int64_t{128}, shape[1]}) {
        const Element element = is_fp8 ? Element::kE4M3 : Element::kInt8;
        const Tensor before = awkward_weights(DType::kF32, shape[0], shape[1]);
        const ScaleBlock block{1, group};
        const std::vector<float> scales = test::scales_of(test::block_amaxes(before, block), test::largest(element));
        const test::Quantized expected = test::quantize_blocks(before, scales, block, element);
        for (const cpu::Isa isa : test::available_isas()) {
          const test::IsaGuard guard(isa);
          Tensor x = awkward_weights(DType::kF32, shape[0], shape[1]);
          if (is_fp8)
            fake_quantize_fp8_groups(x, group);
          else
            fake_quantize_int8_groups(x, group);
          ASSERT_EQ(values_of(x), expected.values) << static_cast<int>(isa) << " " << ptq::to_string(shape) << " " << group;
        }
      }
}

TEST(FakeQuantize, Int8WithOneScaleIsQuantizeThenDequantize) {
  const Tensor before = awkward_weights(DType::kF32, 33, 130);
  const test::Quantized expected = test::quantize_blocks(before, {0.001f}, {33, 130}, Element::kInt8);
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor x = awkward_weights(DType::kF32, 33, 130);
    fake_quantize_int8(x, 0.001f);
    ASSERT_EQ(values_of(x), expected.values) << static_cast<int>(isa);
  }
}

TEST(QuantizeGroups, DoNotDependOnTheThreadCount) {
  const Tensor w = test::random_tensor({300, 1024}, DType::kBF16, 6);
  Tensor amaxes = Tensor::empty({3, 8}, DType::kF32), amaxes_2 = Tensor::empty({3, 8}, DType::kF32);
  Tensor codes = Tensor::empty(w.shape(), DType::kU8), codes_2 = Tensor::empty(w.shape(), DType::kU8);
  block_amax(w, {}, amaxes);
  quantize_fp8_blocks(w, amaxes, {}, codes);

  const test::ThreadsGuard guard(2);
  block_amax(w, {}, amaxes_2);
  quantize_fp8_blocks(w, amaxes, {}, codes_2);

  EXPECT_TRUE(test::same_bits(amaxes, amaxes_2));
  EXPECT_TRUE(test::same_bits(codes, codes_2));
}

TEST(QuantizeGroups, RejectScalesAndShapesThatCannotBe) {
  const Tensor w = Tensor::zeros({3, 24}, DType::kF32), three = test::tensor_of({1, 1, 1}, {3}), zero = test::tensor_of({1, 0, 1}, {3});
  Tensor codes = Tensor::empty({3, 24}, DType::kI8), few = Tensor::empty({3, 23}, DType::kI8), packed = Tensor::empty({1, 24}, DType::kU8);

  EXPECT_THROW(quantize_fp8_rows(w, zero, codes), Error);
  EXPECT_THROW(quantize_fp8_rows(w, three, few), Error);
  EXPECT_THROW(quantize_fp8_blocks(w, three, {}, codes), Error);
  EXPECT_THROW(quantize_int4_groups(w, three, 16, codes), Error);
  EXPECT_THROW(pack_int4_row_pairs(codes, packed), Error);
}

}  // namespace
}  // namespace ptq::kernels
