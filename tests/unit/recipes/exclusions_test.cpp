#include "recipes/exclusions.h"

#include <gtest/gtest.h>

namespace ptq::recipes {
namespace {

using Names = std::vector<std::string>;

TEST(SummarizeExcluded, OtherTowersAreOnePattern) {
  EXPECT_EQ(summarize_excluded({"visual.blocks.0.qkv", "visual.blocks.1.qkv", "visual.merger", "lm_head"}, {"model.layers.0.mlp.up_proj"}),
            (Names{"lm_head", "visual*"}));
}

TEST(SummarizeExcluded, LayersOfMultiTokenPredictionAreOnePatternEach) {
  EXPECT_EQ(summarize_excluded({"model.layers.61.eh_proj", "model.layers.61.mlp.experts.0.up_proj", "model.layers.62.eh_proj"},
                               {"model.layers.6.mlp.up_proj", "model.layers.60.mlp.up_proj"}),
            (Names{"model.layers.61*", "model.layers.62*"}));
}

TEST(SummarizeExcluded, ARouterDoesNotTakeTheGatesWithIt) {
  EXPECT_EQ(summarize_excluded({"model.layers.0.mlp.gate"}, {"model.layers.0.mlp.gate_proj"}), Names{"model.layers.0.mlp.gate"});
  EXPECT_EQ(summarize_excluded({"model.layers.0.mlp.gate"}, {"model.layers.0.mlp.experts.0.gate_proj"}), Names{"model.layers.0.mlp.gate"});
}

TEST(SummarizeExcluded, NothingQuantizedLeavesShortestPrefixes) {
  EXPECT_EQ(summarize_excluded({"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"}, {}), (Names{"lm_head", "model*"}));
}

TEST(MatrixModules, AreThoseOfWeightsWithTwoDimensionsOrMore) {
  EXPECT_EQ(matrix_modules({{"model.norm.weight", DType::kBF16, {8}},
                            {"model.layers.2.eh_proj.weight", DType::kBF16, {8, 16}},
                            {"model.layers.2.mlp.up_proj.weight", DType::kF8E4M3, {8, 8}},
                            {"model.layers.2.mlp.up_proj.weight_scale_inv", DType::kF32, {1, 1}},
                            {"vision.patches.weight", DType::kBF16, {8, 3, 2, 2}},
                            {"vision.patches.bias", DType::kBF16, {8}},
                            {"vision.scale", DType::kF32, {}}}),
            (Names{"model.layers.2.eh_proj", "model.layers.2.mlp.up_proj", "vision.patches"}));
}

TEST(MatrixModules, TensorsOfOtherNamesCountWhereTheirParentHasNone) {
  EXPECT_EQ(matrix_modules({{"vision.positions", DType::kBF16, {9, 8}}, {"vision.blocks.0.fc.weight", DType::kBF16, {8, 8}}}),
            Names{"vision.blocks.0.fc"});
  EXPECT_EQ(matrix_modules({{"vision.experts.gate_up_proj", DType::kBF16, {2, 8, 8}}, {"vision.fc.weight", DType::kBF16, {8, 8}}}),
            (Names{"vision.experts", "vision.fc"}));
  EXPECT_EQ(matrix_modules({{"alone", DType::kBF16, {2, 8}}}), Names{"alone"});
}

TEST(ExclusionFaults, AreWhereAnyServerReadsAPatternOtherwise) {
  const std::string up = "model.layers.0.mlp.up_proj";
  const auto catches = [&](const std::string& pattern) { return !exclusion_faults({pattern}, {up}, {}).empty(); };

  for (const char* pattern :
       {"model.layers.0*", "model.layers.0.mlp.up_proj", "model*", "*up_proj", "mlp*", "mlp", "layers.0.mlp.up", "up_proj", "*.mlp.*"})
    EXPECT_TRUE(catches(pattern)) << pattern;
  for (const char* pattern : {"model.layers.1*", "model.layers.0.mlp.gate", "model.layers.0.mlp.up_proj.*", "lm_head", "*.self_attn.*"})
    EXPECT_FALSE(catches(pattern)) << pattern;
}

TEST(ExclusionFaults, ARouterIsOnlyDangerousInADenseLayer) {
  const Names router{"model.layers.3.mlp.gate"};

  EXPECT_TRUE(exclusion_faults(router,
                               {"model.layers.3.mlp.experts", "model.layers.3.mlp.experts.0.gate_proj",
                                "model.layers.3.mlp.shared_experts.gate_proj", "model.layers.33.mlp.gate_proj"},
                               {"model.layers.3.mlp.gate"})
                  .empty());
  EXPECT_EQ(exclusion_faults(router, {"model.layers.3.mlp.gate_proj"}, {}),
            Names{"model.layers.3.mlp.gate_proj is quantized but matches the exclude pattern model.layers.3.mlp.gate"});
}

TEST(ExclusionFaults, AnUnquantizedModuleNeedsAPatternThatEveryServerTakesForIt) {
  const Names patterns{"lm_head", "model.layers.61*", "vision.*"};

  EXPECT_TRUE(exclusion_faults(patterns, {}, {"lm_head", "model.layers.61.eh_proj", "vision.fc"}).empty());
  EXPECT_EQ(exclusion_faults(patterns, {}, {"model.layers.3.mlp.gate"}),
            Names{"model.layers.3.mlp.gate is not quantized, but no exclude pattern says so"});
  EXPECT_EQ(exclusion_faults(patterns, {}, {"language_model.lm_head"}).size(), 1u) << "only vLLM would find the substring";
}

}  // namespace
}  // namespace ptq::recipes
