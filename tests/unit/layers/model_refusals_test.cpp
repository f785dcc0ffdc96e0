// What describe_model does not accept, and what it says then.

#include <gtest/gtest.h>

#include "layers/models/models.h"
#include "tests/support/expect_error.h"

namespace ptq::layers {
namespace {

/// describe_model of a small sound config with `changes` must be refused with these words.
void expect_refused(const std::string& architecture, const std::string& changes, const std::string& words) {
  auto json =
      nlohmann::ordered_json::parse(R"({"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
    "num_hidden_layers": 2, "vocab_size": 50})");
  json["architectures"] = {architecture};
  if (architecture == "DeciLMForCausalLM")
    json["block_configs"] = nlohmann::ordered_json(
        2, {{"attention", nlohmann::ordered_json{{"n_heads_in_group", 2}}}, {"ffn", nlohmann::ordered_json{{"ffn_mult", 1.0}}}});
  const auto describe = [&] { return describe_model(Config(json, "folder/config.json")); };
  EXPECT_NO_THROW(describe());

  json.merge_patch(nlohmann::ordered_json::parse(changes));

  SCOPED_TRACE(changes);
  test::expect_error(ErrorKind::kData, words, describe);
  test::expect_error(ErrorKind::kData, "folder/config.json", describe);
}

TEST(ModelRefusals, AnUnknownArchitecturePrintsTheKnownOnes) {
  const Config config(nlohmann::ordered_json{{"architectures", {"BertForMaskedLM"}}}, "config.json");

  for (const char* words : {"BertForMaskedLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
                            "DeciLMForCausalLM", "NemotronForCausalLM"})
    test::expect_error(ErrorKind::kData, words, [&] { describe_model(config); });
}

TEST(ModelRefusals, AMissingSizeIsNamed) {
  for (const char* architecture :
       {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "DeciLMForCausalLM", "NemotronForCausalLM"})
    for (const char* key : {"hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"})
      expect_refused(architecture, std::string("{\"") + key + "\": null}", std::string("'").append(key).append("' is missing"));
  expect_refused("LlamaForCausalLM", R"({"intermediate_size": null})", "intermediate_size");
  expect_refused("Qwen2ForCausalLM", R"({"use_sliding_window": true})", "sliding_window");
  expect_refused("DeciLMForCausalLM", R"({"block_configs": null})", "block_configs");
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

TEST(ModelRefusals, OtherActivationsAreNotGuessed) {
  for (const char* architecture :
       {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "DeciLMForCausalLM", "NemotronForCausalLM"})
    expect_refused(architecture, R"({"hidden_act": "gelu"})", "hidden_act");
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
  expect_refused("DeciLMForCausalLM", R"({"block_configs": [{"attention": {"no_op": true}, "ffn": {"no_op": true}}]})",
                 "one entry for each");
  expect_refused("DeciLMForCausalLM", R"({"block_configs": [{"attention": {"no_op": true}}, {"ffn": {"no_op": true}}]})",
                 "block_configs[0]");
}

}  // namespace
}  // namespace ptq::layers
