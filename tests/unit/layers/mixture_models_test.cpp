// The families with mixtures of experts on grouped-query attention, except GLM-4.5.

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/layers/described_model.h"

namespace ptq::layers {
namespace {

using test::attention_of, test::expect_numbers_without_gaps, test::groups_of, test::kinds_of, test::linear_of, test::Lines, test::moe_of;
using test::tensors_of, test::tiny_model;

constexpr const char* kQwen = R"({"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 8})";

ModelSpec qwen3_moe(const std::string& more = "{}") {
  auto json = nlohmann::ordered_json::parse(kQwen);
  json.merge_patch(nlohmann::ordered_json::parse(more));
  return tiny_model("Qwen3MoeForCausalLM", json.dump());
}

TEST(Qwen3Moe, HasARouterAndExpertsOneByOne) {
  const ModelSpec model = qwen3_moe();

  EXPECT_EQ(model.family, "qwen3_moe");
  EXPECT_EQ(tensors_of(model, 1), (Lines{"input_layernorm.weight [16] whole", "mlp.experts.0.down_proj.weight [16, 8] whole",
                                         "mlp.experts.0.gate_proj.weight [8, 16] whole", "mlp.experts.0.up_proj.weight [8, 16] whole",
                                         "mlp.experts.1.down_proj.weight [16, 8] whole", "mlp.experts.1.gate_proj.weight [8, 16] whole",
                                         "mlp.experts.1.up_proj.weight [8, 16] whole", "mlp.gate.weight [2, 16] whole",
                                         "post_attention_layernorm.weight [16] whole", "self_attn.k_norm.weight [8] whole",
                                         "self_attn.k_proj.weight [16, 16] kv heads", "self_attn.o_proj.weight [16, 32] rows",
                                         "self_attn.q_norm.weight [8] whole", "self_attn.q_proj.weight [32, 16] query heads",
                                         "self_attn.v_proj.weight [16, 16] kv heads"}));
  const MoeSpec& moe = moe_of(model, 1);
  EXPECT_EQ(moe.module, "model.layers.1.mlp.experts");
  EXPECT_EQ(moe.intermediate, 8);
  EXPECT_EQ(moe.activation, MoeSpec::Activation::kSiluGated);
  EXPECT_FALSE(moe.scales_input);
  EXPECT_FALSE(moe.shared);
  EXPECT_EQ(moe.router.kind, RouterSpec::Kind::kSoftmax);
  EXPECT_EQ(moe.router.module, "model.layers.1.mlp.gate");
  EXPECT_EQ(moe.router.experts, 2);
  EXPECT_EQ(moe.router.top_k, 1);
  EXPECT_FALSE(moe.router.has_bias);
  EXPECT_EQ(moe.router.correction, "");
}

TEST(Qwen3Moe, ExpertsKnowTheirLinearsAndLinearsTheirExpert) {
  const ModelSpec model = qwen3_moe();
  const MoeSpec& moe = moe_of(model, 0);

  ASSERT_EQ(moe.experts.size(), 2u);
  for (size_t e = 0; e < 2; ++e) {
    const ExpertLinears& expert = moe.experts[e];
    const std::string module = "model.layers.0.mlp.experts." + std::to_string(e);
    EXPECT_EQ(expert.gate_up, -1);
    EXPECT_EQ(linear_of(model, 0, expert.gate).module, module + ".gate_proj");
    EXPECT_EQ(linear_of(model, 0, expert.up).module, module + ".up_proj");
    EXPECT_EQ(linear_of(model, 0, expert.down).module, module + ".down_proj");
    for (const int i : {expert.gate, expert.up, expert.down}) {
      EXPECT_EQ(linear_of(model, 0, i).expert, static_cast<int>(e));
      EXPECT_EQ(linear_of(model, 0, i).feeds_down, i != expert.down);
    }
  }
  EXPECT_EQ(linear_of(model, 0, 0).expert, kNoExpert);
}

TEST(Qwen3Moe, ExpertsReadOneInputAndEachFusesItsOwnPair) {
  const ModelSpec model = qwen3_moe();

  EXPECT_EQ(groups_of(model, 0, &LinearSpec::input_group),
            (std::vector<Lines>{{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                {"self_attn.o_proj"},
                                {"mlp.experts.0.gate_proj", "mlp.experts.0.up_proj", "mlp.experts.1.gate_proj", "mlp.experts.1.up_proj"},
                                {"mlp.experts.0.down_proj"},
                                {"mlp.experts.1.down_proj"}}));
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::scale_group), (std::vector<Lines>{{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                                                               {"self_attn.o_proj"},
                                                                               {"mlp.experts.0.gate_proj", "mlp.experts.0.up_proj"},
                                                                               {"mlp.experts.0.down_proj"},
                                                                               {"mlp.experts.1.gate_proj", "mlp.experts.1.up_proj"},
                                                                               {"mlp.experts.1.down_proj"}}));
  expect_numbers_without_gaps(model, 0);
}

TEST(Qwen3Moe, TheNumberOfExpertsHasThreeNames) {
  EXPECT_EQ(moe_of(qwen3_moe(R"({"num_experts": null, "num_local_experts": 4})"), 0).experts.size(), 4u);
  EXPECT_EQ(moe_of(qwen3_moe(R"({"num_experts": null, "n_routed_experts": 5})"), 0).experts.size(), 5u);
  EXPECT_EQ(moe_of(qwen3_moe(R"({"num_experts": 3, "num_local_experts": 3})"), 0).experts.size(), 3u);
}

TEST(Qwen3Moe, WeightsAreNormalizedOnlyWhereTheConfigSaysSo) {
  EXPECT_FALSE(moe_of(qwen3_moe(), 0).router.normalize);
  EXPECT_TRUE(moe_of(qwen3_moe(R"({"norm_topk_prob": true})"), 0).router.normalize);
}

TEST(Qwen3Moe, SomeLayersMayBeDense) {
  EXPECT_EQ(kinds_of(qwen3_moe()), "MMM");
  EXPECT_EQ(kinds_of(qwen3_moe(R"({"mlp_only_layers": [0, 2, 7]})")), "DMD");
  EXPECT_EQ(kinds_of(qwen3_moe(R"({"decoder_sparse_step": 2})")), "DMD");
  EXPECT_EQ(kinds_of(qwen3_moe(R"({"decoder_sparse_step": 2, "mlp_only_layers": [1]})")), "DDD");
  EXPECT_EQ(kinds_of(qwen3_moe(R"({"num_experts": 0})")), "DDD");
  EXPECT_EQ(kinds_of(qwen3_moe(R"({"intermediate_size": null})")), "MMM") << "needed by dense layers only";

  const Lines dense = tensors_of(qwen3_moe(R"({"mlp_only_layers": [0]})"), 0);
  EXPECT_EQ(std::count(dense.begin(), dense.end(), "mlp.gate_proj.weight [24, 16] rows"), 1);
}

TEST(Qwen3Moe, TheWidthOfAHeadIsTheHiddenSizesShareWithoutHeadDim) {
  EXPECT_EQ(attention_of(qwen3_moe(R"({"head_dim": null})"), 0).head_dim, 4);
}

ModelSpec mixtral(const std::string& more = "{}") {
  auto json = nlohmann::ordered_json::parse(R"({"num_local_experts": 2, "num_experts_per_tok": 2})");
  json.merge_patch(nlohmann::ordered_json::parse(more));
  return tiny_model("MixtralForCausalLM", json.dump());
}

TEST(Mixtral, KeepsTheNamesOfItsFirstRelease) {
  const ModelSpec model = mixtral();
  const MoeSpec& moe = moe_of(model, 2);

  Lines feed_forward;
  for (const std::string& line : tensors_of(model, 2))
    if (line.rfind("block_sparse_moe.", 0) == 0) feed_forward.push_back(line);
  EXPECT_EQ(feed_forward,
            (Lines{"block_sparse_moe.experts.0.w1.weight [24, 16] whole", "block_sparse_moe.experts.0.w2.weight [16, 24] whole",
                   "block_sparse_moe.experts.0.w3.weight [24, 16] whole", "block_sparse_moe.experts.1.w1.weight [24, 16] whole",
                   "block_sparse_moe.experts.1.w2.weight [16, 24] whole", "block_sparse_moe.experts.1.w3.weight [24, 16] whole",
                   "block_sparse_moe.gate.weight [2, 16] whole"}));
  EXPECT_EQ(linear_of(model, 2, moe.experts[1].gate).module, "model.layers.2.block_sparse_moe.experts.1.w1");
  EXPECT_EQ(linear_of(model, 2, moe.experts[1].up).module, "model.layers.2.block_sparse_moe.experts.1.w3");
  EXPECT_EQ(linear_of(model, 2, moe.experts[1].down).module, "model.layers.2.block_sparse_moe.experts.1.w2");
  EXPECT_EQ(moe.module, "model.layers.2.block_sparse_moe.experts");
  EXPECT_EQ(moe.router.module, "model.layers.2.block_sparse_moe.gate");
  EXPECT_EQ(moe.router.kind, RouterSpec::Kind::kSoftmax);
  EXPECT_TRUE(moe.router.normalize) << "always";
  EXPECT_EQ(model.layers[0].tensors.size(), 13u);
  EXPECT_EQ(model.rope.theta, 1e6);
  EXPECT_FLOAT_EQ(model.final_norm.eps, 1e-5f);
}

TEST(Mixtral, EveryLayerHasTheWindow) {
  EXPECT_EQ(attention_of(mixtral(R"({"sliding_window": 5})"), 2).window, 5);
  EXPECT_EQ(attention_of(mixtral(R"({"sliding_window": null})"), 2).window, 0);
}

ModelSpec llama4(const std::string& more = "{}") {
  auto json = nlohmann::ordered_json::parse(R"({"num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size": 8,
    "intermediate_size_mlp": 24, "head_dim": 4, "num_hidden_layers": 4, "interleave_moe_layer_step": 2, "attention_chunk_size": 6,
    "floor_scale": 5, "attn_scale": 0.25})");
  json.merge_patch(nlohmann::ordered_json::parse(more));
  return tiny_model("Llama4ForCausalLM", json.dump());
}

TEST(Llama4, ExpertsAreStackedAndOneIsShared) {
  const ModelSpec model = llama4();
  const MoeSpec& moe = moe_of(model, 1);

  EXPECT_EQ(kinds_of(model), "DMDM");
  Lines feed_forward;
  for (const std::string& line : tensors_of(model, 1))
    if (line.rfind("feed_forward.", 0) == 0) feed_forward.push_back(line);
  EXPECT_EQ(feed_forward,
            (Lines{"feed_forward.experts.down_proj [3, 8, 16] whole", "feed_forward.experts.gate_up_proj [3, 16, 16] whole",
                   "feed_forward.router.weight [3, 16] whole", "feed_forward.shared_expert.down_proj.weight [16, 8] rows",
                   "feed_forward.shared_expert.gate_proj.weight [8, 16] rows", "feed_forward.shared_expert.up_proj.weight [8, 16] rows"}));
  EXPECT_EQ(moe.module, "model.layers.1.feed_forward.experts");
  EXPECT_EQ(moe.router.kind, RouterSpec::Kind::kSigmoid);
  EXPECT_EQ(moe.router.module, "model.layers.1.feed_forward.router");
  EXPECT_TRUE(moe.scales_input);
  EXPECT_FALSE(moe.interleaved);
  EXPECT_EQ(moe.activation, MoeSpec::Activation::kSiluGated);
  ASSERT_EQ(moe.experts.size(), 3u);
  for (const ExpertLinears& expert : moe.experts) {
    EXPECT_EQ(expert.gate, -1);
    EXPECT_EQ(expert.up, -1);
    EXPECT_EQ(expert.gate_up, moe.experts[0].gate_up);
    EXPECT_EQ(expert.down, moe.experts[0].down);
  }
  const LinearSpec& gate_up = linear_of(model, 1, moe.experts[0].gate_up);
  EXPECT_TRUE(gate_up.is_stacked());
  EXPECT_TRUE(gate_up.feeds_down);
  EXPECT_FALSE(linear_of(model, 1, moe.experts[0].down).feeds_down);
  EXPECT_EQ(gate_up.stack, 3);
  EXPECT_EQ(gate_up.out, 16);
  EXPECT_EQ(gate_up.in, 16);
  const Lines dense = tensors_of(model, 0);
  EXPECT_EQ(std::count(dense.begin(), dense.end(), "feed_forward.gate_proj.weight [24, 16] rows"), 1);
}

TEST(Llama4, ExpertsReadAWeightedInput) {
  const ModelSpec model = llama4();

  EXPECT_EQ(groups_of(model, 1, &LinearSpec::input_group),
            (std::vector<Lines>{{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                {"self_attn.o_proj"},
                                {"feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"},
                                {"feed_forward.experts.gate_up_proj"},
                                {"feed_forward.experts.down_proj"},
                                {"feed_forward.shared_expert.down_proj"}}));
  EXPECT_EQ(groups_of(model, 1, &LinearSpec::scale_group)[4],
            (Lines{"feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"}));
  expect_numbers_without_gaps(model, 1);
}

TEST(Llama4, WhichLayersHaveExperts) {
  EXPECT_EQ(kinds_of(llama4(R"({"interleave_moe_layer_step": null})")), "MMMM");
  EXPECT_EQ(kinds_of(llama4(R"({"moe_layers": [0, 3]})")), "MDDM");
  EXPECT_EQ(kinds_of(llama4(R"({"moe_layers": []})")), "DDDD");
}

TEST(Llama4, LayersWithRopeAreChunkedAndTheOthersTuneTheTemperature) {
  const ModelSpec model = llama4();

  for (size_t i = 0; i < 4; ++i) {
    const AttentionSpec& attention = attention_of(model, i);
    const bool rope = i < 3;
    EXPECT_EQ(attention.rope, rope ? AttentionSpec::Rope::kInterleaved : AttentionSpec::Rope::kNone) << i;
    EXPECT_EQ(attention.l2_norm, rope) << i;
    EXPECT_EQ(attention.chunk, rope ? 6 : 0) << i;
    EXPECT_FLOAT_EQ(attention.temperature, rope ? 0.0f : 0.25f) << i;
    EXPECT_EQ(attention.temperature_floor, 5) << i;
    EXPECT_EQ(attention.window, 0) << i;
  }
  EXPECT_EQ(model.rope.theta, 500000.0);
}

std::string ropes_of(const ModelSpec& model) {
  std::string ropes;
  for (size_t i = 0; i < model.layers.size(); ++i) ropes += attention_of(model, i).rope == AttentionSpec::Rope::kNone ? '-' : 'r';
  return ropes;
}

TEST(Llama4, WhichLayersHaveRope) {
  EXPECT_EQ(ropes_of(llama4(R"({"no_rope_layers": []})")), "rrr-") << "an empty list is none";
  EXPECT_EQ(ropes_of(llama4(R"({"no_rope_layers": [0, 1, 1, 1]})")), "-rrr");
  EXPECT_EQ(ropes_of(llama4(R"({"no_rope_layer_interval": 2})")), "r-r-");
}

TEST(Llama4, LayerTypesOverrideTheChunks) {
  const ModelSpec model = llama4(R"({"layer_types": ["full_attention", "chunked_attention", "chunked_attention", "chunked_attention"]})");

  EXPECT_EQ(attention_of(model, 0).chunk, 0);
  EXPECT_EQ(attention_of(model, 0).rope, AttentionSpec::Rope::kInterleaved);
  EXPECT_EQ(attention_of(model, 3).chunk, 6);
  EXPECT_EQ(attention_of(model, 3).rope, AttentionSpec::Rope::kNone);
}

TEST(Llama4, TuningTheTemperatureMayBeAFlagOrANumber) {
  const auto temperature = [](const std::string& value) {
    return attention_of(llama4(R"({"attn_temperature_tuning": )" + value + "}"), 3).temperature;
  };

  EXPECT_FLOAT_EQ(temperature("4"), 0.25f);
  EXPECT_FLOAT_EQ(temperature("true"), 0.25f);
  EXPECT_FLOAT_EQ(temperature("0"), 0.0f);
  EXPECT_FLOAT_EQ(temperature("false"), 0.0f);
}

TEST(Llama4, HeadsAreNotNormalizedWhereTheConfigSaysSo) {
  for (size_t i = 0; i < 4; ++i) EXPECT_FALSE(attention_of(llama4(R"({"use_qk_norm": false})"), i).l2_norm) << i;
}

TEST(Llama4, TheTextOfAMultimodalModelHasAPrefix) {
  const auto text = nlohmann::ordered_json::parse(R"({"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 8, "intermediate_size_mlp": 24, "num_hidden_layers": 2, "vocab_size": 50, "num_local_experts": 3,
    "num_experts_per_tok": 1, "eos_token_id": [7, 8], "hidden_act": "silu"})");
  const ModelSpec model = describe_model(Config({{"architectures", {"Llama4ForConditionalGeneration"}},
                                                 {"text_config", text},
                                                 {"vision_config", {{"hidden_size", 3}}},
                                                 {"eos_token_id", 9},
                                                 {"bos_token_id", 5}},
                                                "config.json"));

  EXPECT_EQ(model.embedding, "language_model.model.embed_tokens.weight");
  EXPECT_EQ(model.final_norm.module, "language_model.model.norm");
  EXPECT_EQ(model.lm_head.module, "language_model.lm_head");
  EXPECT_EQ(model.head_weight(), "language_model.lm_head.weight");
  EXPECT_EQ(model.layers[1].prefix, "language_model.model.layers.1");
  EXPECT_EQ(moe_of(model, 1).module, "language_model.model.layers.1.feed_forward.experts");
  EXPECT_EQ(model.eos_id, 7) << "its own";
  EXPECT_EQ(model.bos_id, 5) << "of the whole";
}

ModelSpec gpt_oss(const std::string& more = "{}") {
  auto json = nlohmann::ordered_json::parse(R"({"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6,
    "rope_theta": 150000, "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
    "truncate": false}})");
  json.merge_patch(nlohmann::ordered_json::parse(more));
  return tiny_model("GptOssForCausalLM", json.dump());
}

TEST(GptOss, HasBiasesSinksAndStackedExperts) {
  const ModelSpec model = gpt_oss();
  const MoeSpec& moe = moe_of(model, 0);

  EXPECT_EQ(
      tensors_of(model, 0),
      (Lines{"input_layernorm.weight [16] whole", "mlp.experts.down_proj [3, 24, 16] whole", "mlp.experts.down_proj_bias [3, 16] whole",
             "mlp.experts.gate_up_proj [3, 16, 48] whole", "mlp.experts.gate_up_proj_bias [3, 48] whole", "mlp.router.bias [3] whole",
             "mlp.router.weight [3, 16] whole", "post_attention_layernorm.weight [16] whole", "self_attn.k_proj.bias [16] kv heads",
             "self_attn.k_proj.weight [16, 16] kv heads", "self_attn.o_proj.bias [16] rows", "self_attn.o_proj.weight [16, 32] rows",
             "self_attn.q_proj.bias [32] query heads", "self_attn.q_proj.weight [32, 16] query heads", "self_attn.sinks [4] whole",
             "self_attn.v_proj.bias [16] kv heads", "self_attn.v_proj.weight [16, 16] kv heads"}));
  EXPECT_EQ(attention_of(model, 0).sinks, "model.layers.0.self_attn.sinks");
  EXPECT_EQ(moe.module, "model.layers.0.mlp.experts");
  EXPECT_EQ(moe.router.kind, RouterSpec::Kind::kTopKSoftmax);
  EXPECT_EQ(moe.router.module, "model.layers.0.mlp.router");
  EXPECT_TRUE(moe.router.has_bias);
  EXPECT_EQ(moe.activation, MoeSpec::Activation::kClampedSwiglu);
  EXPECT_TRUE(moe.interleaved);
  EXPECT_FALSE(moe.scales_input);
  EXPECT_FLOAT_EQ(moe.alpha, 1.702f);
  EXPECT_FLOAT_EQ(moe.limit, 7.0f);
  EXPECT_FALSE(moe.shared);
  EXPECT_FALSE(model.rope.truncate);
}

TEST(GptOss, ExpertsShareScalesInTwoStacks) {
  const ModelSpec model = gpt_oss();
  const std::vector<Lines> expected{{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                    {"self_attn.o_proj"},
                                    {"mlp.experts.gate_up_proj"},
                                    {"mlp.experts.down_proj"}};

  EXPECT_EQ(groups_of(model, 0, &LinearSpec::input_group), expected);
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::scale_group), expected);
}

TEST(GptOss, EveryOtherLayerSlides) {
  const auto windows_of = [](const ModelSpec& model) {
    std::vector<int64_t> windows;
    for (size_t i = 0; i < model.layers.size(); ++i) windows.push_back(attention_of(model, i).window);
    return windows;
  };

  EXPECT_EQ(windows_of(gpt_oss()), (std::vector<int64_t>{6, 0, 6}));
  EXPECT_EQ(windows_of(gpt_oss(R"({"sliding_window": null})")), (std::vector<int64_t>{128, 0, 128}));
  EXPECT_EQ(windows_of(gpt_oss(R"({"layer_types": ["full_attention", "full_attention", "sliding_attention"]})")),
            (std::vector<int64_t>{0, 0, 6}));
}

TEST(GptOss, TheActivationFollowsTheConfig) {
  const MoeSpec moe = moe_of(gpt_oss(R"({"swiglu_limit": 3.5, "swiglu_alpha": 1.25})"), 0);

  EXPECT_FLOAT_EQ(moe.limit, 3.5f);
  EXPECT_FLOAT_EQ(moe.alpha, 1.25f);
}

}  // namespace
}  // namespace ptq::layers
