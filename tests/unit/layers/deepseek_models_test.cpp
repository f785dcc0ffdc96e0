// DeepSeek-V3, Kimi-K2, and GLM-4.5, which has DeepSeek's mixtures.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/unit/layers/described_model.h"

namespace ptq::layers {
namespace {

using test::attention_of, test::expect_numbers_without_gaps, test::groups_of, test::kinds_of, test::linear_of, test::Lines, test::moe_of;
using test::tensors_of, test::tiny_model;

ModelSpec deepseek(const std::string& more = "{}", const std::string& architecture = "DeepseekV3ForCausalLM") {
  auto json = nlohmann::ordered_json::parse(R"({"q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 5, "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "rms_norm_eps": 1e-5})");
  json.merge_patch(nlohmann::ordered_json::parse(more));
  return tiny_model(architecture, json.dump());
}

const LatentAttentionSpec& latent_of(const ModelSpec& model, size_t layer) {
  return std::get<LatentAttentionSpec>(model.layers.at(layer).blocks.at(0).body);
}

TEST(DeepseekV3, AttentionIsLatentWithWidthsOfItsOwn) {
  const ModelSpec model = deepseek();
  const LatentAttentionSpec& attention = latent_of(model, 0);

  EXPECT_EQ(
      tensors_of(model, 0),
      (Lines{"input_layernorm.weight [16] whole", "mlp.down_proj.weight [16, 24] rows", "mlp.gate_proj.weight [24, 16] rows",
             "mlp.up_proj.weight [24, 16] rows", "post_attention_layernorm.weight [16] whole", "self_attn.kv_a_layernorm.weight [10] whole",
             "self_attn.kv_a_proj_with_mqa.weight [14, 16] rows", "self_attn.kv_b_proj.weight [44, 10] query heads",
             "self_attn.o_proj.weight [16, 20] rows", "self_attn.q_a_layernorm.weight [12] whole",
             "self_attn.q_a_proj.weight [12, 16] rows", "self_attn.q_b_proj.weight [40, 12] query heads"}));
  EXPECT_EQ(model.layers[0].attention(), &attention);
  EXPECT_EQ(attention.heads, 4);
  EXPECT_EQ(attention.kv_heads, 4) << "num_key_value_heads is not used";
  EXPECT_EQ(attention.head_dim, 10) << "head_dim of the config is the rotary width";
  EXPECT_EQ(attention.v_head_dim, 5);
  EXPECT_EQ(attention.latent, 10);
  EXPECT_EQ(attention.nope, 6);
  EXPECT_EQ(attention.rot, 4);
  EXPECT_EQ(attention.module, "model.layers.0.self_attn");
  EXPECT_EQ(model.rope.rotary_dim, 4);
  EXPECT_FLOAT_EQ(attention.scale, 1.0f / std::sqrt(10.0f));
  EXPECT_EQ(linear_of(model, 0, attention.q_a).module, "model.layers.0.self_attn.q_a_proj");
  EXPECT_EQ(linear_of(model, 0, attention.kv_a).module, "model.layers.0.self_attn.kv_a_proj_with_mqa");
}

TEST(DeepseekV3, LatentNormsKeepAnEpsOfTheirOwn) {
  const ModelSpec model = deepseek();

  EXPECT_EQ(latent_of(model, 1).q_norm.module, "model.layers.1.self_attn.q_a_layernorm");
  EXPECT_EQ(latent_of(model, 1).kv_norm.module, "model.layers.1.self_attn.kv_a_layernorm");
  EXPECT_FLOAT_EQ(latent_of(model, 1).q_norm.eps, 1e-6f);
  EXPECT_FLOAT_EQ(latent_of(model, 1).kv_norm.eps, 1e-6f);
  EXPECT_FLOAT_EQ(model.layers[1].blocks[0].norm.eps, 1e-5f);
}

TEST(DeepseekV3, YarnRaisesTheSoftmaxScale) {
  const ModelSpec model = deepseek(R"({"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_scaling": {"type": "yarn", "factor": 40,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}})");

  EXPECT_NEAR(latent_of(model, 0).scale, 0.1352338f, 1e-7f);
}

TEST(DeepseekV3, ServersFuseTheTwoDownwardProjections) {
  const ModelSpec model = deepseek();
  const std::vector<Lines> attention{
      {"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}, {"self_attn.q_b_proj"}, {"self_attn.kv_b_proj"}, {"self_attn.o_proj"}};
  std::vector<Lines> dense = attention;
  dense.insert(dense.end(), {{"mlp.gate_proj", "mlp.up_proj"}, {"mlp.down_proj"}});

  EXPECT_EQ(groups_of(model, 0, &LinearSpec::input_group), dense);
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::scale_group), dense);
  const auto inputs = groups_of(model, 1, &LinearSpec::input_group), scales = groups_of(model, 1, &LinearSpec::scale_group);
  EXPECT_EQ(inputs[4], (Lines{"mlp.experts.0.gate_proj", "mlp.experts.0.up_proj", "mlp.experts.1.gate_proj", "mlp.experts.1.up_proj",
                              "mlp.experts.2.gate_proj", "mlp.experts.2.up_proj", "mlp.experts.3.gate_proj", "mlp.experts.3.up_proj",
                              "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"}));
  EXPECT_EQ(inputs.size(), 4u + 1 + 4 + 1);
  EXPECT_EQ(scales[4], (Lines{"mlp.experts.0.gate_proj", "mlp.experts.0.up_proj"}));
  EXPECT_EQ(scales[12], (Lines{"mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"}));
  EXPECT_EQ(scales[13], Lines{"mlp.shared_experts.down_proj"});
  EXPECT_EQ(scales.size(), 14u);
  expect_numbers_without_gaps(model, 1);
}

TEST(DeepseekV3, QueriesMayComeStraightFromTheHiddenState) {
  const ModelSpec model = deepseek(R"({"q_lora_rank": null})");
  const LatentAttentionSpec& attention = latent_of(model, 0);

  EXPECT_EQ(attention.q_a, -1);
  EXPECT_EQ(linear_of(model, 0, attention.q_b).module, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(linear_of(model, 0, attention.q_b).in, 16);
  EXPECT_EQ(linear_of(model, 0, attention.q_b).split, Split::kQueryHeads);
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::input_group)[0], (Lines{"self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"}));
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::scale_group)[0], Lines{"self_attn.q_proj"});
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::scale_group)[1], Lines{"self_attn.kv_a_proj_with_mqa"});
  EXPECT_EQ(tensors_of(model, 0).size(), 10u) << "no q_a_layernorm";
  expect_numbers_without_gaps(model, 0);
}

TEST(DeepseekV3, AttentionBiasIsWhereTheHiddenStateEntersAndLeaves) {
  Lines biases;
  for (const std::string& line : tensors_of(deepseek(R"({"attention_bias": true})"), 2))
    if (line.find(".bias") != std::string::npos) biases.push_back(line);

  EXPECT_EQ(biases,
            (Lines{"self_attn.kv_a_proj_with_mqa.bias [14] rows", "self_attn.o_proj.bias [16] rows", "self_attn.q_a_proj.bias [12] rows"}));
}

TEST(DeepseekV3, TheRouterChoosesWithinGroups) {
  const ModelSpec model = deepseek();
  const MoeSpec& moe = moe_of(model, 1);

  EXPECT_EQ(kinds_of(model), "DMM");
  EXPECT_EQ(moe.router.kind, RouterSpec::Kind::kGroupedSigmoid);
  EXPECT_EQ(moe.router.module, "model.layers.1.mlp.gate");
  EXPECT_EQ(moe.router.correction, "model.layers.1.mlp.gate.e_score_correction_bias");
  EXPECT_EQ(moe.router.groups, 2);
  EXPECT_EQ(moe.router.top_groups, 1);
  EXPECT_EQ(moe.router.top_k, 2);
  EXPECT_TRUE(moe.router.normalize);
  EXPECT_FLOAT_EQ(moe.router.scaling, 2.5f);
  ASSERT_TRUE(moe.shared);
  EXPECT_EQ(linear_of(model, 1, moe.shared->gate).module, "model.layers.1.mlp.shared_experts.gate_proj");
  EXPECT_EQ(linear_of(model, 1, moe.shared->gate).out, 16) << "two shared experts are one of twice the width";
  EXPECT_EQ(linear_of(model, 1, moe.shared->gate).expert, kNoExpert);
  EXPECT_EQ(linear_of(model, 1, moe.shared->gate).split, Split::kRows);
  const Lines lines = tensors_of(model, 1);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), "mlp.gate.e_score_correction_bias [4] whole"), 1);
}

TEST(DeepseekV3, ThereMayBeNoDenseLayerAndNoSharedExpert) {
  const ModelSpec model = deepseek(R"({"first_k_dense_replace": 0, "n_shared_experts": 0, "intermediate_size": null})");

  EXPECT_EQ(kinds_of(model), "MMM");
  EXPECT_FALSE(moe_of(model, 0).shared);
}

TEST(DeepseekV3, KimiIsTheSameUnderOtherNames) {
  EXPECT_EQ(deepseek("{}", "kimi_k2").family, "deepseek_v3");

  nlohmann::ordered_json text = nlohmann::ordered_json::parse(R"({"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
    "num_hidden_layers": 2, "vocab_size": 50, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 5, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1})");
  const ModelSpec model = describe_model(
      Config({{"architectures", {"KimiK25ForConditionalGeneration"}}, {"text_config", text}, {"eos_token_id", 9}}, "config.json"));

  EXPECT_EQ(model.layers[1].prefix, "language_model.model.layers.1");
  EXPECT_EQ(model.lm_head.module, "language_model.lm_head");
  EXPECT_EQ(model.eos_id, 9);
}

ModelSpec glm(const std::string& more = "{}") {
  auto json = nlohmann::ordered_json::parse(R"({"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "head_dim": 8, "attention_bias": true})");
  json.merge_patch(nlohmann::ordered_json::parse(more));
  return tiny_model("Glm4MoeForCausalLM", json.dump());
}

TEST(Glm4Moe, JoinsDeepseeksMixtureToLlamasAttention) {
  const ModelSpec model = glm(R"({"use_qk_norm": true})");
  const MoeSpec& moe = moe_of(model, 1);

  EXPECT_EQ(kinds_of(model), "DMM");
  EXPECT_EQ(model.rope.rotary_dim, 4) << "half of a head";
  EXPECT_EQ(attention_of(model, 0).rope, AttentionSpec::Rope::kHalf);
  EXPECT_EQ(attention_of(model, 0).k_norm, "model.layers.0.self_attn.k_norm");
  EXPECT_EQ(moe.router.kind, RouterSpec::Kind::kGroupedSigmoid);
  EXPECT_EQ(moe.router.groups, 1);
  EXPECT_EQ(moe.router.top_groups, 1);
  EXPECT_FLOAT_EQ(moe.router.scaling, 1.0f);
  EXPECT_TRUE(moe.shared);
  Lines biases;
  for (const std::string& line : tensors_of(model, 1))
    if (line.find("proj.bias") != std::string::npos) biases.push_back(line);
  EXPECT_EQ(biases,
            (Lines{"self_attn.k_proj.bias [16] kv heads", "self_attn.q_proj.bias [32] query heads", "self_attn.v_proj.bias [16] kv heads"}))
      << "o_proj never has one";
  EXPECT_EQ(attention_of(glm(), 0).q_norm, "");
}

}  // namespace
}  // namespace ptq::layers
