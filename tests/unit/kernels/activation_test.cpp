#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::same_bits, test::tensor_of, test::values_of;

TEST(SiluMul, IsAccurateToAFewUlpOverTheWholeRange) {
  std::vector<float> gates;
  for (float x = -80.0f; x <= 100.0f; x += 0.037f) gates.push_back(x);
  const auto count = static_cast<int64_t>(gates.size());
  const Tensor gate = tensor_of(gates, {1, count}), up = random_tensor({1, count}, DType::kF32, 1);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor out = Tensor::empty({1, count}, DType::kF32);
    silu_mul(gate, up, out);
    for (int64_t i = 0; i < count; ++i) {
      const auto x = static_cast<double>(gates[static_cast<size_t>(i)]);
      const double expected = x / (1.0 + std::exp(-x)) * static_cast<double>(up.data<float>()[i]);
      ASSERT_NEAR(static_cast<double>(out.data<float>()[i]), expected, 5e-7 * std::fabs(expected) + 1e-37) << x;
    }
  }
}

TEST(SiluMul, EveryInstructionSetGivesTheSameBitsAlsoInBf16) {
  const Tensor gate = random_tensor({33, 131}, DType::kF32, 2, 4.0f), up = random_tensor({33, 131}, DType::kF32, 3);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Tensor expected = Tensor::empty({33, 131}, dtype), out = Tensor::empty({33, 131}, dtype);
    silu_mul(gate, up, expected);

    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);
      silu_mul(gate, up, out);
      EXPECT_TRUE(same_bits(out, expected));
    }
  }
}

std::vector<GatedShape> gated_shapes() {
  std::vector<GatedShape> shapes;
  for (const bool interleaved : {false, true})
    for (const bool clamped : {false, true}) shapes.push_back({.interleaved = interleaved, .clamped = clamped});
  return shapes;
}

TEST(GatedActivation, AgreesWithF64InEveryLayout) {
  for (GatedShape shape : gated_shapes())
    for (const int64_t width : {1, 7, 16, 65}) {
      shape.limit = 3.5f;  // so that a good part of gate and up is beyond it
      const Tensor gate_up = random_tensor({9, 2 * width}, DType::kF32, 11, 4.0f);
      Tensor out = Tensor::empty({9, width}, DType::kF32);

      gated_activation(gate_up, shape, out);

      EXPECT_LT(test::relative_error(out, test::gated_activation_in_f64(gate_up, shape)), 4e-7) << width;
    }
}

TEST(GatedActivation, ClampsTheGateFromAboveOnlyAndUpOnBothSides) {
  const GatedShape shape{.interleaved = true, .clamped = true};
  const Tensor gate_up = tensor_of({100, 0, -100, 0, 7, 9, 7, 7, 7, -9, 7, -7}, {1, 12});
  Tensor out = Tensor::empty({1, 6}, DType::kF32);

  gated_activation(gate_up, shape, out);

  const std::vector<float> values = values_of(out);
  const float at_limit = 7.0f / (1.0f + std::exp(-1.702f * 7.0f));
  EXPECT_FLOAT_EQ(values[0], at_limit);
  EXPECT_NEAR(values[1], 0.0f, 1e-30f);
  EXPECT_EQ(values[2], values[3]);
  EXPECT_FLOAT_EQ(values[3], 8 * at_limit);
  EXPECT_EQ(values[4], values[5]);
  EXPECT_FLOAT_EQ(values[5], -6 * at_limit);
}

TEST(GatedActivation, OfTwoHalvesIsSiluMulOfThem) {
  const Tensor gate = random_tensor({5, 33}, DType::kF32, 12), up = random_tensor({5, 33}, DType::kF32, 13);
  Tensor both = Tensor::empty({5, 66}, DType::kF32);
  Tensor expected = Tensor::empty({5, 33}, DType::kBF16), out = Tensor::empty({5, 33}, DType::kBF16);
  for (int64_t t = 0; t < 5; ++t) {
    std::copy_n(gate.data<float>() + t * 33, 33, both.data<float>() + t * 66);
    std::copy_n(up.data<float>() + t * 33, 33, both.data<float>() + t * 66 + 33);
  }

  silu_mul(gate, up, expected);
  gated_activation(both, {}, out);

  EXPECT_TRUE(same_bits(out, expected));
}

TEST(GatedActivation, KeepsNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const GatedShape& shape : gated_shapes()) {
    Tensor out = Tensor::empty({1, 2}, DType::kBF16);
    gated_activation(tensor_of({nan, 1, 1, nan}, {1, 4}), shape, out);  // in either layout a NaN gate and a NaN up
    for (const float value : values_of(out)) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(GatedActivation, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const Tensor gate_up = random_tensor({300, 2 * 131}, DType::kF32, 14, 4.0f);
  for (const GatedShape& shape : gated_shapes())
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Tensor expected = Tensor::empty({300, 131}, dtype), out = Tensor::empty({300, 131}, dtype);
      gated_activation(gate_up, shape, expected);

      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard isa_guard(isa);
        const test::ThreadsGuard threads_guard(2);
        gated_activation(gate_up, shape, out);
        EXPECT_TRUE(same_bits(out, expected)) << static_cast<int>(isa);
      }
    }
}

TEST(ScaleRows, MultipliesEachRowByItsFactor) {
  Tensor x = random_tensor({5, 37}, DType::kF32, 15);
  const Tensor before = random_tensor({5, 37}, DType::kF32, 15), factors = tensor_of({1.0f, -0.5f, 0.0f, 1.3f, 1e9f}, {5});

  scale_rows(x, factors);

  for (int64_t i = 0; i < x.numel(); ++i) ASSERT_EQ(x.data<float>()[i], before.data<float>()[i] * factors.data<float>()[i / 37]) << i;
}

TEST(ScaleColumns, MultipliesAndSubtractInPlaceSubtracts) {
  const Tensor original = random_tensor({7, 13}, DType::kF32, 31), factors = random_tensor({13}, DType::kF32, 32),
               other = random_tensor({7, 13}, DType::kF32, 33);
  Tensor scaled = tensor_of(values_of(original), {7, 13}), less = tensor_of(values_of(original), {7, 13});

  scale_columns(scaled, factors);
  subtract_in_place(less, other);

  for (int64_t i = 0; i < 7 * 13; ++i) {
    ASSERT_EQ(scaled.data<float>()[i], original.data<float>()[i] * factors.data<float>()[i % 13]);
    ASSERT_EQ(less.data<float>()[i], original.data<float>()[i] - other.data<float>()[i]);
  }
  EXPECT_THROW(scale_columns(scaled, other), Error);
}

TEST(ReluSquared, SquaresThePositiveAndDropsTheRest) {
  const Tensor x = tensor_of({-2.0f, -0.0f, 0.5f, 3.0f, 1.0f}, {1, 5});
  Tensor out = Tensor::empty({1, 5}, DType::kBF16);

  relu_squared(x, out);

  EXPECT_EQ(values_of(out), (std::vector<float>{0.0f, 0.0f, 0.25f, 9.0f, 1.0f}));
}

TEST(AddInPlace, AddsElementByElement) {
  Tensor x = tensor_of({1, 2, 3}, {1, 3});

  add_in_place(x, tensor_of({10, 20, 30}, {1, 3}));

  EXPECT_EQ(values_of(x), (std::vector<float>{11, 22, 33}));
}

TEST(Convert, RoundsToHalvesToNearestTiesToEven) {
  std::vector<float> values;
  std::vector<uint16_t> expected;
  const auto add = [&](float value, uint32_t half) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      values.push_back(sign ? -value : value);
      expected.push_back(static_cast<uint16_t>(half | sign));
    }
  };
  for (uint16_t half = 0; half < 0x7c00u; ++half) {
    const float here = to_float(F16{half}), next = half == 0x7bffu ? 65536.0f : to_float(F16{static_cast<uint16_t>(half + 1)});
    const float middle = here + (next - here) / 2;
    add(here, half);
    add(std::nextafter(middle, 0.0f), half);
    add(middle, half + half % 2);
    add(std::nextafter(middle, 1e9f), half + 1u);
  }
  add(std::numeric_limits<float>::infinity(), 0x7c00u);
  add(std::numeric_limits<float>::quiet_NaN(), 0x7e00u);
  const Tensor in = tensor_of(values, {1, static_cast<int64_t>(values.size())});
  Tensor out = Tensor::empty(in.shape(), DType::kF16);

  convert(in, out);

  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(out.data<F16>()[i].bits, expected[i]) << values[i];
}

TEST(Convert, RoundsToBf16ToNearestTiesToEvenAndKeepsNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  // 1 + 2⁻⁸ is a tie between 1 and 1 + 2⁻⁷; 1 + 3·2⁻⁸ one between 1 + 2⁻⁷ and 1 + 2⁻⁶.
  std::vector<float> values = {1.0f + 0x1p-8f, 1.0f + 0x1.8p-7f, -1.0f - 0x1p-8f, 1.0f + 0x1.02p-8f, -0.0f, inf, -inf, nan,
                               0x1p-140f,      3.4e38f};
  for (int i = 0; i < 30; ++i) values.push_back(static_cast<float>(i) * 1.01f);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    const auto count = static_cast<int64_t>(values.size());
    Tensor out = Tensor::empty({1, count}, DType::kBF16);
    convert(tensor_of(values, {1, count}), out);
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(out.data<BF16>()[i].bits, to_bf16(values[static_cast<size_t>(i)]).bits) << i;
    EXPECT_EQ(out.data<BF16>()[0].bits, 0x3f80);
    EXPECT_EQ(out.data<BF16>()[1].bits, 0x3f82);
    EXPECT_TRUE(std::isnan(to_float(out.data<BF16>()[7])));
  }
}

TEST(Convert, ReadsEveryHalf) {
  Tensor halves = Tensor::empty({1, 65536}, DType::kF16), out = Tensor::empty({1, 65536}, DType::kF32);
  for (int64_t i = 0; i < 65536; ++i) halves.data<F16>()[i] = {static_cast<uint16_t>(i)};

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    convert(halves, out);
    for (int64_t i = 0; i < 65536; ++i)
      ASSERT_EQ(std::bit_cast<uint32_t>(out.data<float>()[i]), std::bit_cast<uint32_t>(to_float(halves.data<F16>()[i]))) << i;
  }
}

}  // namespace
}  // namespace ptq::kernels
