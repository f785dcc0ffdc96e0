#include "recipes/decision_groups.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_model.h"
#include "tests/unit/recipes/tiny_moe.h"

namespace ptq::recipes {
namespace {

Recipe auto_recipe(std::vector<std::string> formats) {
  Recipe recipe;
  recipe.file = "r.yaml";
  recipe.method = "autoquantize";
  recipe.autoquantize.formats = std::move(formats);
  return recipe;
}

std::vector<DecisionGroup> groups_of(const layers::ModelSpec& model, const Recipe& recipe) {
  return decision_groups(model, recipe, [](const layers::LinearSpec&) { return 16; });
}

std::vector<std::string> names(const std::vector<DecisionGroup>& groups) {
  std::vector<std::string> names;
  for (const auto& group : groups) names.push_back(group.name);
  return names;
}

std::vector<int64_t> bits(const DecisionGroup& group) {
  std::vector<int64_t> bits;
  for (const auto& option : group.options) bits.push_back(option.bits);
  return bits;
}

TEST(DecisionGroups, ADenseLayerHasFour) {
  const auto groups = groups_of(test::tiny_llama(2), auto_recipe({"nvfp4_awq", "fp8"}));

  ASSERT_EQ(groups.size(), 8u);
  EXPECT_EQ(names({groups.begin() + 4, groups.end()}),
            (std::vector<std::string>{"model.layers.1.self_attn.q_proj,k_proj,v_proj", "model.layers.1.self_attn.o_proj",
                                      "model.layers.1.mlp.gate_proj,up_proj", "model.layers.1.mlp.down_proj"}));
  EXPECT_EQ(groups[4].modules.size(), 3u);
  EXPECT_EQ(groups[4].layer, 1);
  EXPECT_EQ(groups[4].factor, 1);
}

TEST(DecisionGroups, BitsAreThoseOfEveryTensorStored) {
  const auto groups = groups_of(test::tiny_llama(1), auto_recipe({"nvfp4_awq", "fp8", "mxfp8"}));

  // q [32, 32], k and v [16, 32]; weight_scale_2 (or weight_scale) and input_scale of each
  const int64_t weights = 2048;
  EXPECT_EQ(groups[0].weights, weights);
  EXPECT_EQ(bits(groups[0]),
            (std::vector<int64_t>{weights * 9 / 2 + 3 * 64, weights * 8 + 3 * 64, weights * 8 + weights / 32 * 8, weights * 16}));
}

TEST(DecisionGroups, NoneStandsWhereTheListHasIt) {
  const Recipe recipe = auto_recipe({"none", "fp8"});

  EXPECT_EQ(candidate_presets(recipe), (std::vector<std::string>{"none", "fp8"}));
  EXPECT_EQ(candidate_presets(auto_recipe({"fp8"})), (std::vector<std::string>{"fp8", "none"}));
  EXPECT_EQ(bits(groups_of(test::tiny_llama(1), recipe)[1]), (std::vector<int64_t>{16 * 1024, 8 * 1024 + 64}));
  EXPECT_EQ(with_preset(recipe, "nvfp4_awq").method, "awq");
}

TEST(DecisionGroups, AWidthThatGroupsDoNotDivideLeavesACandidateOut) {
  const auto groups = groups_of(test::tiny_llama(1, false, 72), auto_recipe({"nvfp4", "fp8"}));

  ASSERT_EQ(groups[2].options.size(), 3u);
  ASSERT_EQ(groups[3].options.size(), 2u) << "down has 72 inputs";
  EXPECT_EQ(groups[3].options[0].candidate, 1);
  EXPECT_EQ(groups[3].options[1].candidate, 2);
}

TEST(DecisionGroups, IgnoredLinearsKeepTheirGroupUnquantizedAndDoNotCount) {
  Recipe recipe = auto_recipe({"nvfp4", "fp8"});
  recipe.ignore = {"*.k_proj", "re:.*down_proj"};

  const auto groups = groups_of(test::tiny_llama(1), recipe);

  EXPECT_EQ(groups[0].weights, 1024 + 512) << "q and v";
  EXPECT_EQ(bits(groups[0]), std::vector<int64_t>{16 * (1024 + 512)});
  EXPECT_EQ(groups[0].options[0].candidate, 2);
  EXPECT_EQ(groups[3].weights, 0);
  EXPECT_EQ(bits(groups[3]), std::vector<int64_t>{0});
  EXPECT_EQ(groups[1].options.size(), 3u);
}

TEST(DecisionGroups, SmoothingVectorsOfModelOptsInt4Count) {
  layers::ModelSpec model = test::tiny_llama(1);
  for (auto& linear : model.layers[0].linears) linear.in = linear.out = 128;

  const auto groups = groups_of(model, auto_recipe({"int4_awq"}));

  const int64_t linear = 128 * 128 * 4 + 128 * 32;
  EXPECT_EQ(bits(groups[0])[0], 3 * linear);
  EXPECT_EQ(bits(groups[1])[0], linear + 128 * 16) << "o_proj has a pre_quant_scale";
}

TEST(DecisionGroups, RoutedExpertsOfALayerAreOneGroup) {
  const auto groups = groups_of(test::tiny_qwen3_moe(2, 4), auto_recipe({"fp8"}));

  EXPECT_EQ(names(groups),
            (std::vector<std::string>{"model.layers.0.self_attn.q_proj,k_proj,v_proj", "model.layers.0.self_attn.o_proj",
                                      "model.layers.0.mlp.experts (12 linears)", "model.layers.1.self_attn.q_proj,k_proj,v_proj",
                                      "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.experts (12 linears)"}));
  EXPECT_EQ(groups[2].weights, 4 * 3 * 16 * 32);
}

TEST(DecisionGroups, OrEveryExpertIsOne) {
  Recipe recipe = auto_recipe({"fp8"});
  recipe.autoquantize.expert_granularity = "expert";

  const auto groups = groups_of(test::tiny_qwen3_moe(1, 4), recipe);

  ASSERT_EQ(groups.size(), 6u);
  EXPECT_EQ(groups[3].name, "model.layers.0.mlp.experts.1.gate_proj,up_proj,down_proj");
}

TEST(DecisionGroups, StackedExpertsCountEveryExpert) {
  const auto groups = groups_of(test::tiny_llama4(1, 4), auto_recipe({"fp8", "fp8_pb_wo"}));

  EXPECT_EQ(groups[2].name, "language_model.model.layers.0.feed_forward.experts.gate_up_proj,down_proj");
  EXPECT_EQ(groups[2].weights, 4 * 3 * 16 * 32);
  ASSERT_EQ(groups[2].options.size(), 2u) << "no blocks in stacked experts";
  EXPECT_EQ(groups[2].options[1].bits, 16 * groups[2].weights);
}

TEST(DecisionGroups, SharedExpertsAndLatentAttentionHaveGroupsOfTheirOwn) {
  const auto groups = groups_of(test::tiny_deepseek(2, 1, 4), auto_recipe({"fp8"}));

  EXPECT_EQ(groups[0].name, "model.layers.0.self_attn.q_a_proj,kv_a_proj_with_mqa");
  const auto all = names(groups);
  EXPECT_EQ(std::count(all.begin(), all.end(), "model.layers.1.mlp.shared_experts.gate_proj,up_proj"), 1);
  EXPECT_EQ(std::count(all.begin(), all.end(), "model.layers.1.mlp.experts (12 linears)"), 1);
}

TEST(DecisionGroups, ActiveWeightsCountRoutedExpertsByTheShareATokenVisits) {
  Recipe recipe = auto_recipe({"fp8"});
  recipe.autoquantize.cost = "active_moe";

  const auto groups = groups_of(test::tiny_qwen3_moe(1, 8), recipe);

  EXPECT_EQ(groups[0].factor, 8);
  EXPECT_EQ(groups[2].factor, 2) << "two experts a token";
  EXPECT_EQ(knapsack_groups({groups[2]}, {{1, 0}})[0].costs[1], 2 * 16 * groups[2].weights);
}

TEST(Budget, IsTheBitsOfTheWeightsThatCount) {
  const auto groups = groups_of(test::tiny_llama(1), auto_recipe({"nvfp4", "fp8"}));
  int64_t weights = 0;
  for (const auto& group : groups) weights += group.weights;

  EXPECT_EQ(budget_of(groups, 8.5, "here"), weights * 17 / 2);
  EXPECT_EQ(budget_of(groups, 16, "here"), weights * 16);
  EXPECT_EQ(effective_bits(groups, weights * 8), 8.0);
}

TEST(Budget, OutOfReachNamesTheRange) {
  const auto groups = groups_of(test::tiny_llama(1), auto_recipe({"mxfp4", "fp8"}));

  for (const double bits : {4.0, 16.5, 0.0, -1.0})
    test::expect_error(ErrorKind::kUser, "the candidates give 4.25 (all the cheapest) to 16 (all the dearest)",
                       [&] { budget_of(groups, bits, "here"); });
  EXPECT_NO_THROW(budget_of(groups, 4.25, "here"));
  Recipe ignoring = auto_recipe({"fp8"});
  ignoring.ignore = {"*"};
  test::expect_error(ErrorKind::kUser, "leaves no linear", [&] { budget_of(groups_of(test::tiny_llama(1), ignoring), 8, "here"); });
}

}  // namespace
}  // namespace ptq::recipes
