#include "recipes/decisions.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_model.h"

namespace ptq::recipes {
namespace {

Recipe recipe_of(const std::string& format, std::vector<Rule> rules = {}, std::vector<std::string> ignore = {"lm_head"}) {
  Recipe recipe;
  recipe.file = "r.yaml";
  recipe.format = format;
  recipe.ignore = std::move(ignore);
  for (size_t i = 0; i < rules.size(); ++i) rules[i].where = "r.yaml:" + std::to_string(10 + i) + "  rule";
  recipe.rules = std::move(rules);
  return recipe;
}

TEST(Matches, GlobsAndExpressionsCoverTheWholeName) {
  const std::string name = "model.layers.10.self_attn.q_proj";

  for (const char* pattern : {"*.self_attn.*", "*q_proj", "model.layers.1?.self_attn.q_proj", "*", "re:.*q_proj",
                              "re:model\\.layers\\.\\d+\\..*", "model.layers.[0-9][0-9].*"})
    EXPECT_TRUE(matches(pattern, name)) << pattern;
  for (const char* pattern : {"self_attn", "model.layers.1.*", "*.k_proj", "re:q_proj", "model.layers.?.self_attn.q_proj", ""})
    EXPECT_FALSE(matches(pattern, name)) << pattern;
  test::expect_error(ErrorKind::kUser, "re:(", [&] { matches("re:(", name); });
}

TEST(DecideFormats, EveryLinearGetsTheFormatButIgnoredOnes) {
  const auto decisions = decide_formats(test::tiny_llama(2), recipe_of("fp8", {}, {"lm_head", "*.down_proj"}));

  EXPECT_EQ(decisions.size(), 15u);
  EXPECT_EQ(decisions.at("lm_head").format, Format::kNone);
  EXPECT_EQ(decisions.at("lm_head").reason, "ignore: lm_head");
  EXPECT_EQ(decisions.at("model.layers.1.mlp.down_proj").format, Format::kNone);
  EXPECT_EQ(decisions.at("model.layers.1.mlp.down_proj").reason, "ignore: *.down_proj");
  EXPECT_EQ(decisions.at("model.layers.1.mlp.up_proj").format, Format::kFp8);
  EXPECT_EQ(decisions.at("model.layers.1.mlp.up_proj").reason, "quantization.format");
  EXPECT_EQ(decisions.count("model.embed_tokens"), 0u) << "no linear";
}

TEST(DecideFormats, TheHeadIsQuantizedWhenNothingIgnoresIt) {
  EXPECT_EQ(decide_formats(test::tiny_llama(1), recipe_of("fp8", {}, {})).at("lm_head").format, Format::kFp8);
}

TEST(DecideFormats, ATiedHeadStaysAsTheEmbedding) {
  const auto decisions = decide_formats(test::tiny_llama(1, true), recipe_of("fp8", {}, {}));

  EXPECT_EQ(decisions.at("lm_head").format, Format::kNone);
  EXPECT_NE(decisions.at("lm_head").reason.find("tied"), std::string::npos);
}

TEST(DecideFormats, TheLastMatchingRuleHolds) {
  const auto decisions =
      decide_formats(test::tiny_llama(2),
                     recipe_of("nvfp4", {{"*.self_attn.*", "fp8", ""}, {"model.layers.1.*", "none", ""}, {"*.o_proj", "w4a16_nvfp4", ""}}));

  EXPECT_EQ(decisions.at("model.layers.0.self_attn.q_proj").format, Format::kFp8);
  EXPECT_EQ(decisions.at("model.layers.0.self_attn.q_proj").reason, "rule 1: *.self_attn.*");
  EXPECT_EQ(decisions.at("model.layers.0.self_attn.o_proj").format, Format::kNvfp4WeightOnly);
  EXPECT_EQ(decisions.at("model.layers.0.mlp.up_proj").format, Format::kNvfp4);
  EXPECT_EQ(decisions.at("model.layers.1.self_attn.q_proj").format, Format::kNone);
  EXPECT_EQ(decisions.at("model.layers.1.self_attn.o_proj").format, Format::kNvfp4WeightOnly);
  EXPECT_EQ(decisions.at("model.layers.1.mlp.down_proj").format, Format::kNone);
}

TEST(DecideFormats, IgnoringIsStrongerThanRules) {
  const auto decisions = decide_formats(test::tiny_llama(2), recipe_of("none", {{"*.o_proj", "fp8", ""}}, {"model.layers.1.*"}));

  EXPECT_EQ(decisions.at("model.layers.0.self_attn.o_proj").format, Format::kFp8);
  EXPECT_EQ(decisions.at("model.layers.1.self_attn.o_proj").format, Format::kNone);
}

TEST(DecideFormats, ARuleThatMatchesNothingIsRefused) {
  test::expect_error(ErrorKind::kUser, "r.yaml:10", [] {
    decide_formats(test::tiny_llama(1), recipe_of("fp8", {{"*.qkv_proj", "none", ""}}));
  });
  test::expect_error(ErrorKind::kUser, "did you mean 'model.layers.0.mlp.up_proj'?", [] {
    decide_formats(test::tiny_llama(1), recipe_of("fp8", {{"model.layers.0.mlp.up_porj", "none", ""}}));
  });
}

TEST(DecideFormats, ARuleOnIgnoredModulesOnlyIsRefused) {
  test::expect_error(ErrorKind::kUser, "matches only modules that quantization.ignore leaves out", [] {
    decide_formats(test::tiny_llama(1), recipe_of("fp8", {{"lm_head", "fp8", ""}}));
  });
}

TEST(DecideFormats, FusedLinearsMustAgree) {
  for (const std::string fused : {"*.q_proj", "*.k_proj", "*.v_proj", "*.gate_proj", "*.up_proj"}) {
    const std::string words = fused.substr(2) + " ";
    test::expect_error(ErrorKind::kUser, "servers fuse", [&] {
      decide_formats(test::tiny_llama(1), recipe_of("fp8", {{fused, "nvfp4", ""}}));
    });
    test::expect_error(ErrorKind::kUser, words, [&] { decide_formats(test::tiny_llama(1), recipe_of("fp8", {}, {"lm_head", fused})); });
  }
  EXPECT_NO_THROW(decide_formats(test::tiny_llama(1), recipe_of("fp8", {{"*.o_proj", "nvfp4", ""}, {"*.down_proj", "none", ""}})));
}

TEST(DecideFormats, InputsMustFillWholeBlocksOf16) {
  const auto model = test::tiny_llama(1, false, 72);  // down_proj reads 72 = 4.5 blocks

  test::expect_error(ErrorKind::kUser, "model.layers.0.mlp.down_proj has 72 inputs", [&] { decide_formats(model, recipe_of("nvfp4")); });
  test::expect_error(ErrorKind::kUser, "not a multiple of the 16", [&] { decide_formats(model, recipe_of("w4a16_nvfp4")); });
  EXPECT_NO_THROW(decide_formats(model, recipe_of("fp8")));
  EXPECT_NO_THROW(decide_formats(model, recipe_of("nvfp4", {{"*.down_proj", "fp8", ""}})));
  EXPECT_NO_THROW(decide_formats(model, recipe_of("nvfp4", {}, {"lm_head", "*.down_proj"})));
}

TEST(NeedsCalibration, OnlyForActivationsOrAKvCache) {
  const auto model = test::tiny_llama(1);
  Recipe weights_only = recipe_of("w4a16_nvfp4"), nothing = recipe_of("none"), mixed = recipe_of("w4a16_nvfp4", {{"*.o_proj", "fp8", ""}});

  EXPECT_FALSE(needs_calibration(decide_formats(model, weights_only), weights_only));
  EXPECT_FALSE(needs_calibration(decide_formats(model, nothing), nothing));
  EXPECT_TRUE(needs_calibration(decide_formats(model, mixed), mixed));
  weights_only.kv_cache = "fp8";
  EXPECT_TRUE(needs_calibration(decide_formats(model, weights_only), weights_only));
}

}  // namespace
}  // namespace ptq::recipes
