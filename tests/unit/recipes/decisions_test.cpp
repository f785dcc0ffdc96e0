#include "recipes/decisions.h"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_model.h"
#include "tests/unit/recipes/tiny_moe.h"

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
  EXPECT_EQ(decisions.at("lm_head").encoding.format, Format::kNone);
  EXPECT_EQ(decisions.at("lm_head").reason, "ignore: lm_head");
  EXPECT_EQ(decisions.at("model.layers.1.mlp.down_proj").encoding.format, Format::kNone);
  EXPECT_EQ(decisions.at("model.layers.1.mlp.down_proj").reason, "ignore: *.down_proj");
  EXPECT_EQ(decisions.at("model.layers.1.mlp.up_proj").encoding.format, Format::kFp8);
  EXPECT_EQ(decisions.at("model.layers.1.mlp.up_proj").reason, "quantization.format");
  EXPECT_EQ(decisions.count("model.embed_tokens"), 0u) << "no linear";
}

TEST(DecideFormats, TheHeadIsQuantizedWhenNothingIgnoresIt) {
  EXPECT_EQ(decide_formats(test::tiny_llama(1), recipe_of("fp8", {}, {})).at("lm_head").encoding.format, Format::kFp8);
}

TEST(DecideFormats, ATiedHeadStaysAsTheEmbedding) {
  const auto decisions = decide_formats(test::tiny_llama(1, true), recipe_of("fp8", {}, {}));

  EXPECT_EQ(decisions.at("lm_head").encoding.format, Format::kNone);
  EXPECT_NE(decisions.at("lm_head").reason.find("tied"), std::string::npos);
}

TEST(DecideFormats, TheLastMatchingRuleHolds) {
  const auto decisions =
      decide_formats(test::tiny_llama(2),
                     recipe_of("nvfp4", {{"*.self_attn.*", "fp8", ""}, {"model.layers.1.*", "none", ""}, {"*.o_proj", "w4a16_nvfp4", ""}}));

  EXPECT_EQ(decisions.at("model.layers.0.self_attn.q_proj").encoding.format, Format::kFp8);
  EXPECT_EQ(decisions.at("model.layers.0.self_attn.q_proj").reason, "rule 1: *.self_attn.*");
  EXPECT_EQ(decisions.at("model.layers.0.self_attn.o_proj").encoding.format, Format::kNvfp4WeightOnly);
  EXPECT_EQ(decisions.at("model.layers.0.mlp.up_proj").encoding.format, Format::kNvfp4);
  EXPECT_EQ(decisions.at("model.layers.1.self_attn.q_proj").encoding.format, Format::kNone);
  EXPECT_EQ(decisions.at("model.layers.1.self_attn.o_proj").encoding.format, Format::kNvfp4WeightOnly);
  EXPECT_EQ(decisions.at("model.layers.1.mlp.down_proj").encoding.format, Format::kNone);
}

TEST(DecideFormats, IgnoringIsStrongerThanRules) {
  const auto decisions = decide_formats(test::tiny_llama(2), recipe_of("none", {{"*.o_proj", "fp8", ""}}, {"model.layers.1.*"}));

  EXPECT_EQ(decisions.at("model.layers.0.self_attn.o_proj").encoding.format, Format::kFp8);
  EXPECT_EQ(decisions.at("model.layers.1.self_attn.o_proj").encoding.format, Format::kNone);
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

TEST(DecideFormats, APlainNameIsIgnoredBelowAnyModule) {
  const auto decisions =
      decide_formats(test::tiny_llama4(2, 2), recipe_of("fp8", {}, {"lm_head", "0.self_attn.o_proj", "elf_attn.q_proj"}));

  EXPECT_EQ(decisions.at("language_model.lm_head").encoding.format, Format::kNone);
  EXPECT_EQ(decisions.at("language_model.lm_head").reason, "ignore: lm_head");
  EXPECT_TRUE(decisions.at("language_model.lm_head").is_ignored);
  EXPECT_EQ(decisions.at("language_model.model.layers.0.self_attn.o_proj").encoding.format, Format::kNone);
  EXPECT_EQ(decisions.at("language_model.model.layers.1.self_attn.o_proj").encoding.format, Format::kFp8);
  EXPECT_EQ(decisions.at("language_model.model.layers.0.self_attn.q_proj").encoding.format, Format::kFp8) << "a name ends after a dot";
  EXPECT_FALSE(decisions.at("language_model.model.layers.0.self_attn.q_proj").is_ignored);
  test::expect_error(ErrorKind::kUser, "matches no linear", [] {
    decide_formats(test::tiny_llama4(1, 2), recipe_of("fp8", {{"o_proj", "none", ""}}));  // rules name modules in full
  });
}

TEST(DecideFormats, AllExpertsOfALayerGetOneFormat) {
  const auto model = test::tiny_qwen3_moe(2, 3);
  const std::vector<Rule> splits[] = {
      {{"*.experts.2.*", "none", ""}}, {{"*.experts.*.down_proj", "nvfp4", ""}}, {{"*.up_proj", "none", ""}}};

  for (const auto& rules : splits) {
    test::expect_error(ErrorKind::kUser, "all routed experts of a layer as one kernel",
                       [&] { decide_formats(model, recipe_of("fp8", rules)); });
    test::expect_error(ErrorKind::kUser, "match all of them or none: \"*.mlp.experts.*\"",
                       [&] { decide_formats(model, recipe_of("fp8", rules)); });
  }
  test::expect_error(ErrorKind::kUser, "model.layers.0.mlp.experts.0.gate_proj and model.layers.0.mlp.experts.2.gate_proj get fp8",
                     [&] { decide_formats(model, recipe_of("fp8", splits[0])); });
  test::expect_error(ErrorKind::kUser, "one kernel", [&] {
    decide_formats(test::tiny_llama4(1, 2), recipe_of("fp8", {{"*.experts.down_proj", "none", ""}}));
  });

  const auto decisions = decide_formats(model, recipe_of("fp8", {{"*.0.mlp.experts.*", "nvfp4", ""}}));
  EXPECT_EQ(decisions.at("model.layers.0.mlp.experts.2.down_proj").encoding.format, Format::kNvfp4);
  EXPECT_EQ(decisions.at("model.layers.1.mlp.experts.2.down_proj").encoding.format, Format::kFp8);
  EXPECT_NO_THROW(decide_formats(test::tiny_deepseek(2, 1, 2), recipe_of("fp8", {{"*.shared_experts.*", "none", ""}})));
}

TEST(DecideFormats, InputsOfExpertsMustFillWholeBlocksToo) {
  auto model = test::tiny_llama4(1, 2);
  for (auto& linear : model.layers[0].linears)
    if (linear.is_routed() && !linear.feeds_down) linear.in = 24;

  test::expect_error(ErrorKind::kUser, "feed_forward.experts.down_proj has 24 inputs", [&] { decide_formats(model, recipe_of("nvfp4")); });
  test::expect_error(ErrorKind::kUser, "[\"lm_head\", \"*.feed_forward.experts.*\"]", [&] { decide_formats(model, recipe_of("nvfp4")); });
}

TEST(DecideFormats, TheLargestModelsTakeNoTime) {
  const auto model = test::tiny_deepseek(61, 3, 256);
  const auto begin = std::chrono::steady_clock::now();

  const auto decisions = decide_formats(model, recipe_of("nvfp4", {{"*.self_attn.*", "fp8", ""},
                                                                   {"re:.*\\.layers\\.[0-2]\\.mlp\\..*", "none", ""},
                                                                   {"*.shared_experts.*", "fp8", ""}}));

  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  EXPECT_EQ(decisions.size(), 61u * 5 + 3 * 3 + 58 * (256 * 3 + 3) + 1);
  EXPECT_LT(seconds, 10) << "a fraction of a second; this allows for sanitizers";
  std::cout << seconds << " s for " << decisions.size() << " linears\n";
}

TEST(DecideFormats, InputsMustFillWholeBlocksOf16) {
  const auto model = test::tiny_llama(1, false, 72);  // down_proj reads 72 = 4.5 blocks

  test::expect_error(ErrorKind::kUser, "model.layers.0.mlp.down_proj has 72 inputs", [&] { decide_formats(model, recipe_of("nvfp4")); });
  test::expect_error(ErrorKind::kUser, "not a multiple of the 16", [&] { decide_formats(model, recipe_of("w4a16_nvfp4")); });
  EXPECT_NO_THROW(decide_formats(model, recipe_of("fp8")));
  EXPECT_NO_THROW(decide_formats(model, recipe_of("nvfp4", {{"*.down_proj", "fp8", ""}})));
  EXPECT_NO_THROW(decide_formats(model, recipe_of("nvfp4", {}, {"lm_head", "*.down_proj"})));
}

/// Widths that 128 divides.
layers::ModelSpec wide(layers::ModelSpec model) {
  for (auto& layer : model.layers)
    for (auto& linear : layer.linears) linear.in = linear.out = 128;
  return model;
}

TEST(DecideFormats, Int4HasItsGroupsAndSmoothingVectorsBehindAttentionAndMlps) {
  const auto model = wide(test::tiny_llama(1));
  Recipe recipe = recipe_of("int4", {{"*.k_proj", "int4", ""}});
  recipe.group_size = 32;
  const auto decisions = decide_formats(model, recipe);

  for (const auto& [module, decision] : decisions) {
    if (module == "lm_head") continue;
    EXPECT_EQ(decision.encoding.group_size, 32) << module;
    EXPECT_EQ(decision.encoding.pre_quant_scale, module.ends_with("o_proj") || module.ends_with("down_proj")) << module;
  }
  recipe.dialect = "compressed-tensors";
  for (const auto& [module, decision] : decide_formats(model, recipe)) {
    EXPECT_FALSE(decision.encoding.pre_quant_scale) << module;
    EXPECT_EQ(decision.encoding.dialect, Dialect::kCompressedTensors);
  }
  for (const auto& [module, decision] : decide_formats(wide(test::tiny_qwen3_moe(1, 2)), recipe_of("w4a8"))) {
    if (module.find("experts") == std::string::npos) continue;
    EXPECT_EQ(decision.encoding.pre_quant_scale, module.ends_with("down_proj")) << module;
  }
}

TEST(DecideFormats, WhatHasNoLayoutIsRefusedByName) {
  layers::ModelSpec odd = wide(test::tiny_llama(1));
  odd.layers[0].linears.back().out = 127;
  test::expect_error(ErrorKind::kUser, "model.layers.0.mlp.down_proj has 127 outputs", [&] { decide_formats(odd, recipe_of("int4")); });
  Recipe compressed = recipe_of("fp8");
  compressed.dialect = "compressed-tensors";
  test::expect_error(ErrorKind::kUser, "*.feed_forward.experts.*", [&] { decide_formats(wide(test::tiny_llama4(1, 2)), compressed); });
}

TEST(NeedsCalibration, OnlyForStaticScales) {
  const auto model = wide(test::tiny_llama(1));
  for (const auto& [format, dialect, needed] :
       {std::tuple{"fp8", "modelopt", true}, std::tuple{"int8", "compressed-tensors", true}, std::tuple{"w4a8", "modelopt", true},
        std::tuple{"w4a8", "compressed-tensors", false}, std::tuple{"fp8_pc_pt", "modelopt", false}, std::tuple{"mxfp8", "modelopt", false},
        std::tuple{"int4", "modelopt", false}}) {
    Recipe recipe = recipe_of(format);
    recipe.dialect = dialect;
    EXPECT_EQ(needs_calibration(decide_formats(model, recipe), recipe), needed) << format << " " << dialect;
  }
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
