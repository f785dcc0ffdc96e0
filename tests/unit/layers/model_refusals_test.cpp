// What describe_model does not accept, and what it says then.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "layers/models/models.h"
#include "tests/support/expect_error.h"

namespace ptq::layers {
namespace {

const std::vector<std::string> kMixtures{"Qwen3MoeForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM",
                                         "Glm4MoeForCausalLM",  "Llama4ForCausalLM",  "GptOssForCausalLM"};
const std::vector<std::string> kSiluModels = [] {
  std::vector<std::string> all{"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "DeciLMForCausalLM"};
  all.insert(all.end(), kMixtures.begin(), kMixtures.end());
  return all;
}();

/// A small config that every architecture finds sound: it has the keys of all of them.
nlohmann::ordered_json sound_config(const std::string& architecture) {
  auto json =
      nlohmann::ordered_json::parse(R"({"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
    "num_hidden_layers": 2, "vocab_size": 50, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4, "v_head_dim": 5, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 2, "rope_scaling": null})");
  json["architectures"] = {architecture};
  if (architecture == "DeciLMForCausalLM")
    json["block_configs"] = nlohmann::ordered_json(
        2, {{"attention", nlohmann::ordered_json{{"n_heads_in_group", 2}}}, {"ffn", nlohmann::ordered_json{{"ffn_mult", 1.0}}}});
  return json;
}

/// describe_model of that config with `changes` must be refused with these words.
void expect_refused(const std::string& architecture, const std::string& changes, const std::string& words) {
  auto json = sound_config(architecture);
  const auto describe = [&] { return describe_model(Config(json, "folder/config.json")); };
  EXPECT_NO_THROW(describe());

  json.merge_patch(nlohmann::ordered_json::parse(changes));

  SCOPED_TRACE(architecture + " " + changes);
  test::expect_error(ErrorKind::kData, words, describe);
  test::expect_error(ErrorKind::kData, "folder/config.json", describe);
}

TEST(ModelRefusals, AnUnknownArchitecturePrintsTheKnownOnes) {
  // Some of them are near relatives of a family that is known.
  for (const char* unknown : {"BertForMaskedLM", "DeepseekV2ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM",
                              "NemotronHForCausalLM", "Qwen2MoeForCausalLM", "LlamaForCausalLM, MistralForCausalLM"}) {
    const Config config(nlohmann::ordered_json{{"architectures", {unknown}}, {"model_type", "llama"}}, "config.json");

    for (const char* words :
         {unknown, "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "DeciLMForCausalLM",
          "NemotronForCausalLM", "Qwen3MoeForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM", "KimiK25ForConditionalGeneration",
          "Glm4MoeForCausalLM", "Llama4ForCausalLM", "Llama4ForConditionalGeneration", "GptOssForCausalLM"})
      test::expect_error(ErrorKind::kData, words, [&] { describe_model(config); });
  }
}

TEST(ModelRefusals, AMissingSizeIsNamed) {
  const auto missing = [](const std::string& architecture, const std::string& key, const std::string& named) {
    expect_refused(architecture, "{\"" + key + "\": null}", "'" + named + "' is missing");
  };
  for (const std::string& architecture : kSiluModels)
    for (const char* key : {"hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"}) missing(architecture, key, key);
  missing("NemotronForCausalLM", "vocab_size", "vocab_size");
  for (const std::string& architecture : kMixtures) missing(architecture, "num_experts_per_tok", "num_experts_per_tok");
  for (const char* architecture : {"Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeForCausalLM"})
    missing(architecture, "moe_intermediate_size", "moe_intermediate_size");
  for (const char* architecture :
       {"LlamaForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeForCausalLM", "Llama4ForCausalLM", "GptOssForCausalLM"})
    missing(architecture, "intermediate_size", "intermediate_size");
  missing("Llama4ForCausalLM", "intermediate_size_mlp", "intermediate_size_mlp");
  for (const char* key : {"kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}) missing("DeepseekV3ForCausalLM", key, key);
  missing("Qwen3MoeForCausalLM", "num_experts", "num_experts");
  missing("MixtralForCausalLM", "num_experts", "num_local_experts");
  missing("DeepseekV3ForCausalLM", "num_experts", "n_routed_experts");
  missing("Glm4MoeForCausalLM", "num_experts", "n_routed_experts");
  missing("Llama4ForCausalLM", "num_experts", "num_local_experts");
  missing("GptOssForCausalLM", "num_experts", "num_local_experts");
  expect_refused("Qwen2ForCausalLM", R"({"use_sliding_window": true})", "sliding_window");
  expect_refused("DeciLMForCausalLM", R"({"block_configs": null})", "block_configs");
  expect_refused("GptOssForCausalLM", R"({"rope_scaling": null})", "rope_parameters");
}

TEST(ModelRefusals, SizesMustFitTogether) {
  expect_refused("LlamaForCausalLM", R"({"num_attention_heads": 5})", "not a multiple of num_attention_heads");
  expect_refused("LlamaForCausalLM", R"({"num_key_value_heads": 3})", "num_key_value_heads");
  expect_refused("LlamaForCausalLM", R"({"num_key_value_heads": 0})", "num_key_value_heads");
  expect_refused("LlamaForCausalLM", R"({"num_hidden_layers": 0})", "num_hidden_layers");
  expect_refused("LlamaForCausalLM", R"({"hidden_size": -16})", "hidden_size");
  expect_refused("LlamaForCausalLM", R"({"vocab_size": "many"})", "vocab_size");
  expect_refused("LlamaForCausalLM", R"({"rms_norm_eps": -1})", "not positive");
  expect_refused("MistralForCausalLM", R"({"sliding_window": -1})", "sliding_window");
  expect_refused("Qwen2ForCausalLM", R"({"use_sliding_window": true, "sliding_window": 0})", "sliding_window");
  expect_refused("LlamaForCausalLM", R"({"head_dim": 5})", "rotary width of 5");
}

TEST(ModelRefusals, RoutersMustBePossible) {
  for (const std::string& architecture : kMixtures) {
    expect_refused(architecture, R"({"num_experts_per_tok": 9})", "'num_experts_per_tok' is 9, more than num_experts = 8");
    expect_refused(architecture, R"({"num_experts_per_tok": 0})", "num_experts_per_tok");
    expect_refused(architecture, R"({"num_experts": -8})", "num_experts");
    expect_refused(architecture, R"({"num_local_experts": 4})", "are not the same");
  }
  for (const char* architecture : {"DeepseekV3ForCausalLM", "Glm4MoeForCausalLM"}) {
    expect_refused(architecture, R"({"n_group": 3})", "'n_group' is 3, which does not divide the 8 experts");
    expect_refused(architecture, R"({"n_group": 0})", "n_group");
    expect_refused(architecture, R"({"n_group": 8})", "two best");
    expect_refused(architecture, R"({"topk_group": 3})", "'topk_group' is 3, more than n_group = 2");
    expect_refused(architecture, R"({"topk_group": 0})", "topk_group");
    expect_refused(architecture, R"({"num_experts_per_tok": 5})", "'num_experts_per_tok' is 5, more than the 4 experts");
    expect_refused(architecture, R"({"routed_scaling_factor": 0})", "routed_scaling_factor");
    expect_refused(architecture, R"({"scoring_func": "softmax"})", "'scoring_func' is 'softmax'");
    expect_refused(architecture, R"({"topk_method": "group_limited_greedy"})", "'topk_method' is 'group_limited_greedy'");
    expect_refused(architecture, R"({"moe_layer_freq": 2})", "'moe_layer_freq' is 2");
    expect_refused(architecture, R"({"first_k_dense_replace": -1})", "first_k_dense_replace");
    expect_refused(architecture, R"({"n_shared_experts": -1})", "n_shared_experts");
  }
  expect_refused("GptOssForCausalLM", R"({"swiglu_limit": -7})", "swiglu_limit");
  expect_refused("GptOssForCausalLM", R"({"swiglu_alpha": 1e60})", "swiglu_alpha");
}

TEST(ModelRefusals, LayersMustBeListedProperly) {
  expect_refused("Qwen3MoeForCausalLM", R"({"mlp_only_layers": 1})", "'mlp_only_layers' is not a list");
  expect_refused("Qwen3MoeForCausalLM", R"({"mlp_only_layers": ["1"]})", "mlp_only_layers");
  expect_refused("Qwen3MoeForCausalLM", R"({"decoder_sparse_step": 0})", "decoder_sparse_step");
  expect_refused("Llama4ForCausalLM", R"({"moe_layers": [0.5]})", "moe_layers");
  expect_refused("Llama4ForCausalLM", R"({"no_rope_layers": [1]})", "'no_rope_layers' is not a list with one entry per layer");
  expect_refused("Llama4ForCausalLM", R"({"no_rope_layer_interval": 0})", "no_rope_layer_interval");
  expect_refused("Llama4ForCausalLM", R"({"interleave_moe_layer_step": 0})", "interleave_moe_layer_step");
  expect_refused("Llama4ForCausalLM", R"({"layer_types": ["full_attention", "sliding_attention"]})", "sliding_attention");
  expect_refused("GptOssForCausalLM", R"({"layer_types": ["full_attention", "chunked_attention"]})", "chunked_attention");
}

TEST(ModelRefusals, WhatNoPublishedModelDoesIsRefused) {
  expect_refused("Qwen3MoeForCausalLM", R"({"use_sliding_window": true, "sliding_window": 4})", "use_sliding_window");
  expect_refused("DeepseekV3ForCausalLM", R"({"rope_interleave": false})", "rope_interleave");
  expect_refused("DeepseekV3ForCausalLM", R"({"partial_rotary_factor": 0.5})", "partial_rotary_factor");
  expect_refused("Llama4ForCausalLM", R"({"attn_temperature_tuning": "yes"})", "attn_temperature_tuning");
}

TEST(ModelRefusals, ATextPartIsNamedInItsErrors) {
  expect_refused("Llama4ForConditionalGeneration", R"({"text_config": 3})", "text_config");
  expect_refused("Llama4ForConditionalGeneration", R"({"text_config": {"hidden_size": 16}})", "'text_config.");
}

TEST(ModelRefusals, AHostileConfigCostsNothing) {
  for (const std::string& architecture : kMixtures) {
    expect_refused(architecture, R"({"num_experts": 5000})", "more than any model has");
    expect_refused(architecture, R"({"num_experts": 4000, "num_hidden_layers": 9000})", "more than any model has");
    expect_refused(architecture, R"({"num_experts": 9223372036854775807})", "num_experts");
  }
  for (const std::string& architecture : kSiluModels) {
    expect_refused(architecture, R"({"num_hidden_layers": 10001})", "num_hidden_layers");
    expect_refused(architecture, R"({"hidden_size": 16777216, "intermediate_size": 16777216, "moe_intermediate_size": 16777216})",
                   "would have more than 2^40 elements");
    expect_refused(architecture, R"({"hidden_size": 18446744073709551615})", "hidden_size");
    expect_refused(architecture, R"({"hidden_size": 4294967296})", "hidden_size");
  }
  expect_refused("DeepseekV3ForCausalLM",
                 R"({"num_attention_heads": 16777216, "qk_nope_head_dim": 16777216, "qk_rope_head_dim": 16777216, "q_lora_rank": null})",
                 "would have more than 2^40 elements");
  expect_refused("Llama4ForCausalLM", R"({"intermediate_size": 16777216, "num_experts": 4096})", "would have more than 2^40 elements");
}

TEST(ModelRefusals, OtherActivationsAreNotGuessed) {
  for (const std::string& architecture : kSiluModels) expect_refused(architecture, R"({"hidden_act": "gelu"})", "'hidden_act' is 'gelu'");
  expect_refused("NemotronForCausalLM", R"({"hidden_act": "silu"})", "'hidden_act' is 'silu'");
}

TEST(ModelRefusals, LayerTypesMustBeKnownAndOneEach) {
  expect_refused("MistralForCausalLM", R"({"sliding_window": 4, "layer_types": ["full_attention"]})", "layer_types");
  expect_refused("MistralForCausalLM", R"({"sliding_window": 4, "layer_types": ["full_attention", "chunked_attention"]})",
                 "chunked_attention");
}

TEST(ModelRefusals, ANasBlockThatDoesSomethingElseIsRefused) {
  const auto attention = [](const std::string& keys) {
    return R"({"block_configs": [{"attention": )" + keys +
           R"(, "ffn": {"no_op": true}}, {"attention": {"no_op": true}, "ffn": {"no_op": true}}]})";
  };
  const auto ffn = [](const std::string& keys) {
    return R"({"block_configs": [{"attention": {"no_op": true}, "ffn": {"no_op": true}}, {"attention": {"no_op": true}, "ffn": )" + keys +
           "}]}";
  };

  for (const char* key :
       {"window_length", "num_sink_tokens", "use_prefill_window_in_sink_attention", "unshifted_sink", "sparsify", "llama4", "mamba"})
    expect_refused("DeciLMForCausalLM", attention(std::string(R"({"n_heads_in_group": 2, ")") + key + R"(": 1})"),
                   std::string("block_configs[0].attention.") + key);
  for (const char* key : {"sparsify", "moe"})
    expect_refused("DeciLMForCausalLM", ffn(std::string(R"({"ffn_mult": 1.0, ")") + key + R"(": {"a": 1}})"),
                   std::string("block_configs[1].ffn.") + key);
  expect_refused("DeciLMForCausalLM", ffn(R"({"ffn_mult": 1.0, "gated": false})"), "gated");
  expect_refused("DeciLMForCausalLM", ffn(R"({"ffn_mult": 1.0, "hidden_act": "gelu"})"), "hidden_act");
  expect_refused("DeciLMForCausalLM", ffn("{}"), "block_configs[1].ffn.ffn_mult' is missing");
  expect_refused("DeciLMForCausalLM", attention("{}"), "block_configs[0].attention.n_heads_in_group' is missing");
  expect_refused("DeciLMForCausalLM", attention(R"({"n_heads_in_group": 3})"), "n_heads_in_group");
  expect_refused("DeciLMForCausalLM", attention(R"({"num_key_value_heads": 3})"), "block_configs[0].attention.num_key_value_heads");
  expect_refused("DeciLMForCausalLM", ffn(R"({"ffn_mult": 1e300})"), "block_configs[1].ffn.ffn_mult");
  expect_refused("DeciLMForCausalLM", ffn(R"({"ffn_mult": -1.0})"), "block_configs[1].ffn.ffn_mult");
  expect_refused("DeciLMForCausalLM", ffn(R"({"intermediate_size": 0})"), "block_configs[1].ffn.intermediate_size");
  expect_refused("DeciLMForCausalLM", R"({"block_configs": [{"attention": {"no_op": true}, "ffn": {"no_op": true}}]})",
                 "one entry for each");
  expect_refused("DeciLMForCausalLM", R"({"block_configs": [{"attention": {"no_op": true}}, {"ffn": {"no_op": true}}]})",
                 "block_configs[0]");
}

}  // namespace
}  // namespace ptq::layers
