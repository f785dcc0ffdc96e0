#include "recipes/smoothing_plan.h"

#include <gtest/gtest.h>

#include "tests/unit/recipes/tiny_model.h"

namespace ptq::recipes {
namespace {

using Place = GroupPlan::Place;

Recipe recipe_of(const std::string& quantization, const std::string& output = "") {
  return parse_recipe("model: {path: in}\nquantization: {" + quantization + "}\noutput: {path: out" + output + "}\n", "recipe.yaml", {});
}

struct Planned {
  LayerSmoothing smoothing;
  std::vector<ScaleNote> notes;
  std::map<std::string, Decision> decisions;

  /// The group that the linear reads; fails the test where it is not searched.
  const GroupPlan& of(const layers::ModelSpec& model, const std::string& reader) const {
    for (const GroupPlan& plan : smoothing.groups)
      for (const int linear : plan.group.linears)
        if (model.layers[0].linears[static_cast<size_t>(linear)].module.ends_with(reader)) return plan;
    throw bug("no plan of " + reader);
  }
};

Planned plan(const layers::ModelSpec& model, const Recipe& recipe) {
  Planned planned;
  planned.decisions = decide_formats(model, recipe);
  planned.smoothing = plan_smoothing(model.layers[0], planned.decisions, recipe, planned.notes);
  return planned;
}

const std::string kInt4 = "preset: int4_awq, group_size: 16";

TEST(PlanSmoothing, FoldsEveryGroupOfAwq) {
  const auto model = test::tiny_llama(1);
  const Planned planned = plan(model, recipe_of(kInt4, ", dialect: compressed-tensors"));

  ASSERT_EQ(planned.smoothing.groups.size(), 4u);
  EXPECT_TRUE(planned.notes.empty());
  for (const GroupPlan& group : planned.smoothing.groups) {
    EXPECT_EQ(group.place, Place::kFolded);
    EXPECT_EQ(group.rule, SmoothingRule::kAwq);
    EXPECT_TRUE(group.searched && group.needs.channels && group.needs.gram);
    EXPECT_FALSE(group.needs.sample) << "INT4 alone rounds no activations";
    EXPECT_EQ(planned.smoothing.find(group.group.input_group), &group);
  }
  EXPECT_EQ(planned.smoothing.find(99), nullptr);
  for (const GroupPlan& group : plan(model, recipe_of("preset: nvfp4_awq")).smoothing.groups) EXPECT_TRUE(group.needs.sample);
}

TEST(PlanSmoothing, StoresWhatTheRecipeDoesNotFold) {
  const auto model = test::tiny_llama(1);
  const Planned norms = plan(model, recipe_of(kInt4 + ", awq: {fold: modelopt}")),
                none = plan(model, recipe_of(kInt4 + ", awq: {fold: none}"));

  EXPECT_EQ(norms.of(model, "q_proj").place, Place::kFolded);
  EXPECT_EQ(norms.of(model, "o_proj").place, Place::kStored);
  EXPECT_EQ(norms.of(model, "down_proj").place, Place::kStored);
  const auto stores = [](const Planned& planned, const std::string& name) {
    return planned.decisions.at("model.layers.0." + name).encoding.pre_quant_scale;
  };
  EXPECT_FALSE(stores(norms, "self_attn.q_proj"));
  EXPECT_TRUE(stores(norms, "self_attn.o_proj"));
  for (const char* name : {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"})
    EXPECT_TRUE(stores(none, name)) << name;
  EXPECT_EQ(plan(model, recipe_of(kInt4, ", engine: tensorrt-llm")).of(model, "o_proj").place, Place::kStored) << "that engine's own";
}

TEST(PlanSmoothing, LeavesGroupsThatAnUnquantizedLinearHolds) {
  const auto model = test::tiny_llama(1);
  const Planned planned =
      plan(model, recipe_of(kInt4 + ", ignore: ['*.[qkv]_proj', '*.up_proj', '*.gate_proj']", ", dialect: compressed-tensors"));

  ASSERT_EQ(planned.smoothing.groups.size(), 2u) << "what nothing quantized reads is not searched";
  EXPECT_EQ(planned.of(model, "o_proj").place, Place::kNone);
  EXPECT_EQ(planned.of(model, "down_proj").place, Place::kNone);
  EXPECT_TRUE(planned.of(model, "o_proj").needs.gram) << "its codes are still searched";
  ASSERT_EQ(planned.notes.size(), 2u);
  EXPECT_EQ(planned.notes[0].module, "model.layers.0.self_attn.o_proj");
  EXPECT_NE(planned.notes[0].note.find("model.layers.0.self_attn.v_proj is not quantized"), std::string::npos) << planned.notes[0].note;
}

TEST(PlanSmoothing, OfSmoothQuantSearchesTheExponentOnlyWhereAsked) {
  const auto model = test::tiny_llama(1);
  const Planned fixed = plan(model, recipe_of("preset: int8_sq", ", dialect: compressed-tensors")),
                found = plan(model, recipe_of("preset: int8_sq, smoothquant: {alpha: auto}", ", dialect: compressed-tensors"));

  for (const GroupPlan& group : fixed.smoothing.groups) {
    EXPECT_EQ(group.rule, SmoothingRule::kSmoothQuant);
    EXPECT_FALSE(group.searched || group.needs.gram || group.needs.sample);
    EXPECT_EQ(group.place, Place::kFolded);
  }
  for (const GroupPlan& group : found.smoothing.groups) EXPECT_TRUE(group.searched && group.needs.sample && !group.needs.gram);
}

TEST(PlanSmoothing, OfMinMaxIsEmpty) {
  const auto model = test::tiny_llama(1);
  EXPECT_TRUE(plan(model, recipe_of("preset: nvfp4")).smoothing.groups.empty());
  EXPECT_TRUE(plan(model, recipe_of("format: int4, method: minmax, group_size: 16")).smoothing.groups.empty());
}

TEST(PlanSmoothing, OfExpertsTakesThemWithTheirNorm) {
  const auto model = layers::describe_model(layers::Config({{"architectures", {"MixtralForCausalLM"}},
                                                            {"hidden_size", 32},
                                                            {"num_attention_heads", 4},
                                                            {"num_key_value_heads", 2},
                                                            {"intermediate_size", 64},
                                                            {"num_hidden_layers", 1},
                                                            {"num_local_experts", 4},
                                                            {"num_experts_per_tok", 2},
                                                            {"vocab_size", 50}},
                                                           "config.json"));
  const Planned planned = plan(model, recipe_of("preset: nvfp4_awq"));
  ASSERT_EQ(planned.smoothing.groups.size(), 3u);
  const GroupPlan& experts = planned.smoothing.groups.back();
  EXPECT_TRUE(planned.smoothing.experts && experts.group.feeds_experts && experts.group.linears.empty());
  EXPECT_EQ(experts.place, Place::kFolded);
  EXPECT_EQ(planned.smoothing.experts_down, Place::kFolded);
  EXPECT_FALSE(experts.needs.gram) << "each expert has its own, of its tokens";

  const Planned ignored = plan(model, recipe_of("preset: nvfp4_awq, ignore: ['*.experts.*']"));
  EXPECT_FALSE(ignored.smoothing.experts);
  EXPECT_EQ(ignored.smoothing.groups.size(), 2u);
}

}  // namespace
}  // namespace ptq::recipes
