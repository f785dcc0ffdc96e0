#include "recipes/kv_choice.h"

#include <gtest/gtest.h>

#include <variant>

#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_model.h"

namespace ptq::recipes {
namespace {

/// A layer for each head dim: one kv head, as many value channels.
layers::ModelSpec model_of(const std::vector<int64_t>& head_dims) {
  layers::ModelSpec model = test::tiny_llama(static_cast<int64_t>(head_dims.size()));
  for (size_t i = 0; i < head_dims.size(); ++i)
    for (auto& block : model.layers[i].blocks)
      if (auto* attention = std::get_if<layers::AttentionSpec>(&block.body)) {
        attention->kv_heads = 1;
        attention->head_dim = attention->v_head_dim = head_dims[i];
      }
  return model;
}

Recipe choice_recipe(std::vector<std::string> formats) {
  Recipe recipe;
  recipe.file = "r.yaml";
  recipe.method = "autoquantize";
  recipe.autoquantize.kv_cache.formats = std::move(formats);
  return recipe;
}

TEST(KvChoice, CostsWhatIsCachedOfAToken) {
  const KvSensitivity choice = kv_choice(model_of({16, 32}), choice_recipe({"none", "nvfp4", "fp8"}));

  ASSERT_EQ(choice.groups.size(), 2u);
  EXPECT_EQ(choice.groups[1].name, "model.layers.1.self_attn");
  EXPECT_EQ(choice.groups[1].layer, 1);
  EXPECT_EQ(choice.groups[0].weights, 32) << "keys and values";
  EXPECT_EQ(choice.groups[1].weights, 64);
  std::vector<int64_t> bits;
  for (const auto& option : choice.groups[1].options) bits.push_back(option.bits);
  EXPECT_EQ(bits, (std::vector<int64_t>{64 * 16, 64 * 9 / 2, 64 * 8}));
  EXPECT_EQ(choice.scores, (std::vector<std::vector<double>>{{0, 0, 0}, {0, 0, 0}}));
}

TEST(KvChoice, LatentAttentionCachesOneVectorForAllHeads) {
  layers::ModelSpec model = model_of({16});
  layers::LatentAttentionSpec latent;
  latent.module = "model.layers.0.self_attn";
  latent.heads = latent.kv_heads = 8;
  latent.head_dim = latent.v_head_dim = 32;
  latent.latent = 48;
  latent.rot = 16;
  for (auto& block : model.layers[0].blocks)
    if (std::holds_alternative<layers::AttentionSpec>(block.body)) block.body = latent;

  EXPECT_EQ(kv_choice(model, choice_recipe({"fp8", "nvfp4"})).groups[0].weights, 64);
}

TEST(KvChoice, IsSolvedByTheKnapsackUnderItsBudget) {
  KvSensitivity choice = kv_choice(model_of({16, 32, 16}), choice_recipe({"fp8", "nvfp4"}));
  choice.scores = {{0.1, 0.9}, {0.2, 0.8}, {0.1, 0.2}};
  const auto solved = [&](double bits) {
    return solve(knapsack_groups(choice.groups, choice.scores), budget_of(choice.groups, bits, "key"));
  };

  const Mix middle = solved(6.5);

  // All but one of the halves can have 8 bits: the two small layers together gain more than the large one.
  EXPECT_EQ(middle.choice, (std::vector<int>{0, 1, 0}));
  EXPECT_EQ(effective_bits(choice.groups, middle.cost), 6.25);
  EXPECT_EQ(solved(8.0).choice, (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(solved(4.5).choice, (std::vector<int>{1, 1, 1}));
  const KvFormats formats = kv_formats_of(choice, middle);
  EXPECT_EQ(formats.at("model.layers.0.self_attn"), KvFormat::kFp8);
  EXPECT_EQ(formats.at("model.layers.1.self_attn"), KvFormat::kNvfp4);
  const checkpoint::Json report = kv_report(choice, middle, 6.5);
  EXPECT_EQ(report.at("budget"), 6.5);
  EXPECT_EQ(report.at("layers")[1].at("format"), "nvfp4");
  EXPECT_EQ(report.at("layers")[1].at("bits"), 288);
  EXPECT_EQ(report.at("layers")[1].at("score"), 0.8);
  EXPECT_EQ(report.at("layers")[1].at("options")[0].at("format"), "fp8");
}

TEST(KvChoice, RefusesWhatNoLayerCanHave) {
  const KvSensitivity choice = kv_choice(model_of({16, 32}), choice_recipe({"fp8", "nvfp4"}));
  for (const double bits : {4.0, 8.5})
    test::expect_error(ErrorKind::kUser, "the candidates give 4.5 (all the cheapest) to 8 (all the dearest)",
                       [&] { budget_of(choice.groups, bits, "key"); });
  test::expect_error(ErrorKind::kUser, "quantization.autoquantize.kv_cache.formats", [&] {
    kv_choice(model_of({8}), choice_recipe({"fp8", "nvfp4"}));
  });
  EXPECT_NO_THROW(kv_choice(model_of({8}), choice_recipe({"fp8", "none"})));
  layers::ModelSpec without_attention = model_of({16});
  without_attention.layers[0].blocks.clear();
  test::expect_error(ErrorKind::kUser, "no attention block", [&] { kv_choice(without_attention, choice_recipe({"fp8", "nvfp4"})); });
}

}  // namespace
}  // namespace ptq::recipes
