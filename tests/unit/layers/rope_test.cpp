#include "layers/rope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <tuple>

#include "tests/support/expect_error.h"

namespace ptq::layers {
namespace {

RopeSpec read(const char* json, int64_t head_dim, double partial = 1.0, double theta = 10000.0) {
  return read_rope(Config(nlohmann::ordered_json::parse(json), "config.json"), head_dim, partial, theta);
}

/// θ^(-2i/d), before any scaling, in f64.
double plain(double theta, int64_t width, int64_t i) {
  return std::exp(-std::log(theta) * 2.0 * static_cast<double>(i) / static_cast<double>(width));
}

/// f and f/factor mixed: `stays` = 1 keeps f.
double mixed(double f, double factor, double stays) { return f * stays + f / factor * (1 - stays); }

void expect_frequencies(const RopeSpec& rope, const std::function<double(int64_t)>& expected) {
  const std::vector<float> found = inverse_frequencies(rope);
  ASSERT_EQ(static_cast<int64_t>(found.size()), rope.rotary_dim / 2);
  for (int64_t i = 0; i < rope.rotary_dim / 2; ++i) {
    const double wanted = expected(i);
    EXPECT_NEAR(static_cast<double>(found[static_cast<size_t>(i)]), wanted, 4e-7 * wanted) << "frequency " << i;
  }
}

/// The tables' entries at `position` against cos and sin of the f32 angle.
void expect_table(const RopeSpec& rope, int64_t position, double factor) {
  const RopeTables tables = make_rope_tables(rope, position + 1);
  const std::vector<float> frequencies = inverse_frequencies(rope);
  const int64_t half = rope.rotary_dim / 2;
  ASSERT_EQ(tables.cos.shape(), (Shape{position + 1, half}));
  for (int64_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * frequencies[static_cast<size_t>(i)];
    EXPECT_NEAR(static_cast<double>(tables.cos.data<float>()[position * half + i]), std::cos(static_cast<double>(angle)) * factor, 2e-7)
        << i;
    EXPECT_NEAR(static_cast<double>(tables.sin.data<float>()[position * half + i]), std::sin(static_cast<double>(angle)) * factor, 2e-7)
        << i;
    EXPECT_EQ(tables.cos.data<float>()[i], static_cast<float>(factor)) << "position 0 is not turned";
    EXPECT_EQ(tables.sin.data<float>()[i], 0.0f);
  }
}

constexpr const char* kLlama31 = R"({"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {"factor": 8.0,
  "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}})";

TEST(Rope, PlainFrequenciesFallGeometrically) {
  const RopeSpec rope = read(R"({"rope_theta": 10000.0})", 64);

  EXPECT_EQ(rope.type, "default");
  expect_frequencies(rope, [](int64_t i) { return plain(10000, 64, i); });
  EXPECT_EQ(inverse_frequencies(rope)[0], 1.0f);
  EXPECT_EQ(attention_factor(rope), 1.0f);
  expect_table(rope, 4095, 1.0);
}

TEST(Rope, Llama31KeepsShortWavesAndStretchesLongOnesByEight) {
  const RopeSpec rope = read(kLlama31, 128);

  const auto expected = [](int64_t i) {
    const double f = plain(500000, 128, i);
    const double turns = 8192 * f / (2 * std::numbers::pi);  // within the original context
    return mixed(f, 8, std::clamp((turns - 1) / (4 - 1), 0.0, 1.0));
  };
  expect_frequencies(rope, expected);
  // All three branches are there: 8192/2π = 1303.8 turns at i = 0, 4 turns near i = 28, 1 near i = 35.
  EXPECT_EQ(inverse_frequencies(rope)[28], static_cast<float>(plain(500000, 128, 28)));
  EXPECT_LT(expected(30), 0.95 * plain(500000, 128, 30));
  EXPECT_GT(expected(30), 1.05 * plain(500000, 128, 30) / 8);
  EXPECT_NEAR(expected(35), plain(500000, 128, 35) / 8, 1e-12);
  EXPECT_EQ(attention_factor(rope), 1.0f);
  expect_table(rope, 131071, 1.0);
}

TEST(Rope, Llama3WithEqualLowAndHighFactorHasNoMiddle) {
  RopeSpec rope = read(kLlama31, 128);
  rope.factor = 16;
  rope.low_freq_factor = rope.high_freq_factor = 1;

  expect_frequencies(rope, [](int64_t i) {
    const double f = plain(500000, 128, i);
    return 8192 * f / (2 * std::numbers::pi) >= 1 ? f : f / 16;
  });
}

TEST(Rope, Llama3ReadsLowAndHighFactorThatAreTheSame) {
  // Llama 4 Scout's config. The slope between the two would be a division by zero.
  const RopeSpec rope = read(R"({"rope_theta": 500000.0, "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}})",
                             128);

  for (const float f : inverse_frequencies(rope)) EXPECT_TRUE(std::isfinite(f) && f > 0);
  EXPECT_EQ(inverse_frequencies(rope)[0], 1.0f);
  EXPECT_EQ(inverse_frequencies(rope)[63], static_cast<float>(plain(500000, 128, 63)) / 16);
}

TEST(Rope, YarnOfDeepSeekScalesFrequenciesButNotTheTables) {
  const RopeSpec rope = read(R"({"rope_theta": 10000, "max_position_embeddings": 163840, "rope_scaling": {"type": "yarn", "factor": 40,
    "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}})",
                             64);

  // 32 turns within 4096 positions lie at dimension 10.47, one at 22.51: cut to 10 and raised to 23.
  expect_frequencies(
      rope, [](int64_t i) { return mixed(plain(10000, 64, i), 40, 1 - std::clamp((static_cast<double>(i) - 10) / (23 - 10), 0.0, 1.0)); });
  EXPECT_EQ(attention_factor(rope), 1.0f);
  expect_table(rope, 131071, 1.0);
}

TEST(Rope, DeepSeeksSoftmaxFactorIsTheSquareOfM) {
  const auto factor = [](const char* json) { return softmax_factor(read(json, 64)); };
  const double m = 0.1 * std::log(40.0) + 1;

  EXPECT_NEAR(factor(R"({"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0,
    "mscale_all_dim": 1.0}})"),
              m * m, 1e-6);
  EXPECT_NEAR(m * m, 1.873854, 1e-6);
  EXPECT_NEAR(factor(R"({"rope_scaling": {"type": "linear", "factor": 40, "mscale_all_dim": 1.0}})"), m * m, 1e-6) << "any scaled type";
  EXPECT_EQ(factor(R"({"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}})"), 1.0f);
  EXPECT_EQ(factor(R"({"rope_parameters": {"rope_type": "default", "factor": 40, "mscale_all_dim": 1.0}})"), 1.0f);
  EXPECT_EQ(factor("{}"), 1.0f);
}

TEST(Rope, YarnDividesTheTwoMscales) {
  const auto factor = [](const char* mscale, const char* all_dim) {
    return attention_factor(
        read((R"({"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": )" +
              std::string(mscale) + R"(, "mscale_all_dim": )" + all_dim + "}}")
                 .c_str(),
             64));
  };
  const auto m = [](double mscale) { return 0.1 * mscale * std::log(40.0) + 1; };

  EXPECT_NEAR(factor("0.5", "0.75"), m(0.5) / m(0.75), 1e-6);
  EXPECT_NEAR(factor("0.5", "0"), m(1), 1e-6) << "one alone says nothing";
  EXPECT_NEAR(factor("0.5", "null"), m(1), 1e-6);
  EXPECT_NEAR(factor("null", "0.75"), m(1), 1e-6);
}

TEST(Rope, YarnOfGptOssKeepsFractionsAndRaisesTheTables) {
  const RopeSpec rope =
      read(R"({"rope_theta": 150000, "max_position_embeddings": 131072, "rope_scaling": {"rope_type": "yarn", "factor": 32.0,
    "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false}})",
           64);

  const double low = 64 * std::log(4096 / (2 * std::numbers::pi * 32)) / (2 * std::log(150000.0));
  const double high = 64 * std::log(4096 / (2 * std::numbers::pi)) / (2 * std::log(150000.0));
  ASSERT_NEAR(low, 8.09, 0.01);
  ASSERT_NEAR(high, 17.40, 0.01);
  expect_frequencies(rope, [&](int64_t i) {
    return mixed(plain(150000, 64, i), 32, 1 - std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
  });
  EXPECT_NEAR(attention_factor(rope), 1.346574f, 5e-7f);
  expect_table(rope, 131071, 0.1 * std::log(32.0) + 1);
}

TEST(Rope, YarnOfQwenRaisesTheTables) {
  const RopeSpec rope =
      read(R"({"rope_theta": 1000000.0, "max_position_embeddings": 40960, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
    "original_max_position_embeddings": 32768}})",
           128);

  // 32 turns within 32768 positions lie at dimension 23.6, one at 39.7.
  expect_frequencies(rope, [](int64_t i) {
    return mixed(plain(1000000, 128, i), 4, 1 - std::clamp((static_cast<double>(i) - 23) / (40 - 23), 0.0, 1.0));
  });
  EXPECT_NEAR(attention_factor(rope), 1.138629f, 5e-7f);
  expect_table(rope, 32767, 0.1 * std::log(4.0) + 1);
}

TEST(Rope, YarnTakesAGivenAttentionFactor) {
  const RopeSpec rope = read(
      R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "original_max_position_embeddings": 64}})", 16);

  EXPECT_EQ(attention_factor(rope), 1.25f);
  expect_table(rope, 100, 1.25);
}

TEST(Rope, YarnWithoutDistanceBetweenItsBoundsIsStillANumber) {
  // Both bounds fall on dimension 0 when the original context is shorter than one turn of the fastest wave.
  const RopeSpec rope = read(R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4}})", 16);

  expect_frequencies(rope, [](int64_t i) { return plain(10000, 16, i) / (i == 0 ? 1 : 4); });
}

TEST(Rope, LinearDividesEveryFrequency) {
  const RopeSpec rope = read(R"({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}})", 32);

  expect_frequencies(rope, [](int64_t i) { return plain(10000, 32, i) / 2.5; });
  EXPECT_EQ(attention_factor(rope), 1.0f);
  expect_table(rope, 9999, 1.0);
}

TEST(Rope, GivenFrequenciesAreTakenAsTheyAre) {
  RopeSpec rope = read(kLlama31, 128);
  rope.frequencies.assign(64, 0.25f);

  EXPECT_EQ(inverse_frequencies(rope), std::vector<float>(64, 0.25f));
  EXPECT_EQ(make_rope_tables(rope, 3).cos.data<float>()[2 * 64 + 63], std::cos(0.5f));
}

TEST(Rope, PartOfAHeadTurnsWhenTheConfigSaysSo) {
  EXPECT_EQ(read("{}", 128).rotary_dim, 128);
  EXPECT_EQ(read("{}", 128, 0.5).rotary_dim, 64);
  EXPECT_EQ(read(R"({"partial_rotary_factor": 0.25})", 128, 0.5).rotary_dim, 32);
  EXPECT_EQ(read(R"({"rope_parameters": {"partial_rotary_factor": 0.25}})", 128).rotary_dim, 32);
  EXPECT_EQ(read(R"({"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}})", 128).rotary_dim, 32);
}

TEST(Rope, ANullIsAMissingKey) {
  EXPECT_EQ(read(R"({"rope_parameters": {"rope_type": "default", "rope_theta": null}})", 8).theta, 10000.0);
  EXPECT_EQ(read(R"({"rope_parameters": {"rope_type": "default", "rope_theta": null}, "rope_theta": 7.0})", 8).theta, 7.0);
  EXPECT_EQ(read(R"({"rope_parameters": {"rope_theta": null}, "rope_scaling": {"rope_theta": 6.0}})", 8).theta, 6.0);
  EXPECT_EQ(read(R"({"rope_parameters": null})", 8, 1.0, 500000.0).theta, 500000.0) << "the family's own";
  EXPECT_EQ(read(R"({"rope_scaling": {"rope_type": null, "type": "linear", "factor": 2}})", 8).type, "linear");
  EXPECT_TRUE(
      read(R"({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "truncate": null}})", 8).truncate);
}

auto members(const RopeSpec& rope) {
  return std::tuple(rope.type, rope.theta, rope.rotary_dim, rope.factor, rope.original_max_positions, rope.low_freq_factor,
                    rope.high_freq_factor, rope.beta_fast, rope.beta_slow, rope.mscale, rope.mscale_all_dim, rope.attention_factor,
                    rope.truncate);
}

TEST(Rope, BothDialectsOfTheConfigSayTheSame) {
  const RopeSpec llama = read(R"({"max_position_embeddings": 131072, "rope_parameters": {"rope_theta": 500000.0, "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}})",
                              128);
  const RopeSpec yarn_new =
      read(R"({"rope_parameters": {"rope_theta": 5.0, "rope_type": "yarn", "factor": 3.0, "beta_fast": 16, "beta_slow": 2,
    "mscale": 0.5, "mscale_all_dim": 0.75, "attention_factor": 1.5, "truncate": false, "original_max_position_embeddings": 99,
    "partial_rotary_factor": 0.5}})",
           128);
  const RopeSpec yarn_old =
      read(R"({"rope_theta": 5.0, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 99, "rope_scaling": {"type": "yarn",
    "factor": 3.0, "beta_fast": 16, "beta_slow": 2, "mscale": 0.5, "mscale_all_dim": 0.75, "attention_factor": 1.5, "truncate": false}})",
           128);

  EXPECT_EQ(members(llama), members(read(kLlama31, 128)));
  EXPECT_EQ(members(yarn_new), members(yarn_old));
  EXPECT_EQ(members(read(R"({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}})", 8)),
            members(read(R"({"rope_theta": 7.0, "rope_scaling": null})", 8)));
}

TEST(Rope, TheOriginalContextIsTheModelsWhereItIsNotSaid) {
  EXPECT_EQ(read(R"({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 2}})", 8).original_max_positions, 512);
}

TEST(Rope, WhatItDoesNotKnowItRefuses) {
  const auto refuses = [](const char* json, const char* words) { test::expect_error(ErrorKind::kData, words, [&] { read(json, 64); }); };

  refuses(R"({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})", "'dynamic'");
  refuses(R"({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 8}})", "factor");
  refuses(R"({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})", "original_max_position_embeddings");
  refuses(R"({"rope_scaling": {"rope_type": "linear", "factor": "two"}})", "factor");
  refuses(R"({"rope_scaling": {"rope_type": 3}})", "rope_type");
  refuses(R"({"rope_scaling": [1]})", "rope_scaling");
  refuses(R"({"partial_rotary_factor": 0.05})", "partial_rotary_factor");
  refuses(R"({"partial_rotary_factor": 1.5})", "partial_rotary_factor");
  refuses(R"({"partial_rotary_factor": 1e300})", "partial_rotary_factor");
  refuses(R"({"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "truncate": 0}})", "truncate");
  refuses(R"({"rope_parameters": {"full_attention": {"rope_type": "default"}}})", "rope_parameters.full_attention");
  refuses(R"({"rope_theta": 0})", "rope_theta");
  refuses(R"({"rope_theta": -5})", "rope_theta");
  refuses(R"({"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": 0, "original_max_position_embeddings": 8}})", "beta_fast");
  refuses(R"({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn", "factor": 2}})", "different rope types");
}

}  // namespace
}  // namespace ptq::layers
