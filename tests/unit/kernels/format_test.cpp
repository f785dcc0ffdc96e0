#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/format/formats.h"
#include "tests/unit/kernels/golden.h"

namespace ptq::kernels {
namespace {

static_assert(E4M3::encode(448.0f) == 0x7e && E4M3::decode(0x7e) == 448.0f, "formats work at compile time");
static_assert(E2M1::encode(-6.0f) == 0xf && E2M1::decode(0xf) == -6.0f);

TEST(E4M3, EveryCodeDecodesAsPyTorchAndRoundTrips) {
  const auto table = test::golden("e4m3.json")["decode_table_f32"];
  ASSERT_EQ(table.size(), 256u);
  for (int code = 0; code < 256; ++code) {
    const float value = E4M3::decode(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_EQ(E4M3::encode(value), 0x7f);
      continue;
    }
    EXPECT_EQ(std::bit_cast<uint32_t>(value), test::hex(table[static_cast<size_t>(code)])) << code;
    EXPECT_EQ(E4M3::encode(value), code);
  }
}

TEST(E4M3, EncodesTheGoldenCases) {
  int checked = 0;
  const auto vectors = test::golden("e4m3.json");
  for (const auto& c : vectors["cases"]) {
    const auto codes = test::bytes_of(c["codes_saturating"]);
    for (size_t i = 0; i < codes.size(); ++i, ++checked)
      EXPECT_EQ(E4M3::encode(test::f32_of(c["in_f32"][i])), codes[i]) << c["name"] << " " << c["in_dec"][i];
  }
  EXPECT_GT(checked, 30);
}

TEST(E4M3, RoundsToTheNearestCodeTiesToEvenEverywhere) {
  for (uint8_t code = 0; code < 0x7e; ++code) {
    const float low = E4M3::decode(code), high = E4M3::decode(static_cast<uint8_t>(code + 1)), middle = (low + high) / 2;
    EXPECT_EQ(E4M3::encode(middle), code + (code & 1)) << middle;
    EXPECT_EQ(E4M3::encode(std::nextafter(middle, 0.0f)), code) << middle;
    EXPECT_EQ(E4M3::encode(-std::nextafter(middle, 1e9f)), (code + 1) | 0x80) << middle;
  }
}

TEST(E4M3, SaturatesAndKeepsTheSignOfZero) {
  EXPECT_EQ(E4M3::encode(465.0f), 0x7e);
  EXPECT_EQ(E4M3::encode(-std::numeric_limits<float>::infinity()), 0xfe);
  EXPECT_EQ(E4M3::encode(-0.0f), 0x80);
  EXPECT_EQ(E4M3::encode(0x1p-149f), 0x00);
}

TEST(E2M1, EncodesTheGoldenCases) {
  int checked = 0;
  const auto vectors = test::golden("e2m1.json");
  for (const auto& c : vectors["cases"]) {
    if (c["name"] == "nan") continue;  // ModelOpt's answer for NaN is an accident; NaN is an error here, found by the observer
    for (size_t i = 0; i < c["in_f32"].size(); ++i, ++checked)
      EXPECT_EQ(E2M1::encode(test::f32_of(c["in_f32"][i])), c["codes_nvfp4"][i].get<int>()) << c["name"] << " " << c["in_dec"][i];
  }
  EXPECT_GT(checked, 30);
}

TEST(E2M1, TiesGoToEven) {
  for (uint8_t code = 0; code < 7; ++code) {
    const float middle = (E2M1::decode(code) + E2M1::decode(static_cast<uint8_t>(code + 1))) / 2;
    EXPECT_EQ(E2M1::encode(middle), code + (code & 1));
    EXPECT_EQ(E2M1::encode(-middle), 8 + code + (code & 1));
    EXPECT_EQ(E2M1::encode(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(E2M1::encode(std::nextafter(middle, 9.0f)), code + 1);
  }
}

TEST(E2M1, EveryCodeDecodesAndRoundTrips) {
  const float magnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (uint8_t code = 0; code < 16; ++code) {
    EXPECT_EQ(E2M1::decode(code), code & 8 ? -magnitudes[code & 7] : magnitudes[code & 7]);
    EXPECT_EQ(E2M1::encode(E2M1::decode(code)), code == 8 ? 0 : code) << "-0 has no code of its own when encoded";
  }
}

TEST(E2M1, ASmallNegativeKeepsItsSignButMinusZeroDoesNot) {
  EXPECT_EQ(E2M1::encode(-0.1f), 8);
  EXPECT_EQ(E2M1::encode(-0.0f), 0);
}

}  // namespace
}  // namespace ptq::kernels
