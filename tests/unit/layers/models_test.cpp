// The dense families.

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/layers/described_model.h"

namespace ptq::layers {
namespace {

using test::attention_of, test::groups_of, test::Lines, test::tensors_of, test::tiny_model;

std::vector<int64_t> windows_of(const ModelSpec& model) {
  std::vector<int64_t> windows;
  for (size_t i = 0; i < model.layers.size(); ++i) windows.push_back(attention_of(model, i).window);
  return windows;
}

TEST(Llama, HasTheUsualTensors) {
  const ModelSpec model = tiny_model("LlamaForCausalLM", R"({"rms_norm_eps": 1e-5})");

  EXPECT_EQ(model.family, "llama");
  ASSERT_EQ(model.layers.size(), 3u);
  EXPECT_EQ(model.layers[2].prefix, "model.layers.2");
  EXPECT_EQ(model.layers[2].index, 2);
  EXPECT_EQ(tensors_of(model, 2),
            (Lines{"input_layernorm.weight [16] whole", "mlp.down_proj.weight [16, 24] rows", "mlp.gate_proj.weight [24, 16] rows",
                   "mlp.up_proj.weight [24, 16] rows", "post_attention_layernorm.weight [16] whole",
                   "self_attn.k_proj.weight [8, 16] kv heads", "self_attn.o_proj.weight [16, 16] rows",
                   "self_attn.q_proj.weight [16, 16] query heads", "self_attn.v_proj.weight [8, 16] kv heads"}));
  EXPECT_EQ(model.embedding, "model.embed_tokens.weight");
  EXPECT_EQ(model.final_norm.module, "model.norm");
  EXPECT_EQ(model.head_weight(), "lm_head.weight");
  EXPECT_EQ(model.lm_head.out, 50);
  EXPECT_EQ(model.lm_head.in, 16);
  EXPECT_EQ(model.hidden, 16);
  EXPECT_EQ(model.vocab, 50);
  EXPECT_EQ(model.max_positions, 64);
  EXPECT_EQ(model.eos_id, 2);
  EXPECT_EQ(model.bos_id, 1);
  EXPECT_FLOAT_EQ(model.final_norm.eps, 1e-5f);
  EXPECT_FLOAT_EQ(model.layers[0].blocks[0].norm.eps, 1e-5f);
}

TEST(Llama, FusedLinearsShareAnInputAndAScale) {
  const ModelSpec model = tiny_model("LlamaForCausalLM");
  const std::vector<Lines> expected{{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                    {"self_attn.o_proj"},
                                    {"mlp.gate_proj", "mlp.up_proj"},
                                    {"mlp.down_proj"}};

  EXPECT_EQ(groups_of(model, 0, &LinearSpec::input_group), expected);
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::scale_group), expected);
}

TEST(Llama, AttentionScalesByTheHeadsWidth) {
  const ModelSpec model = tiny_model("LlamaForCausalLM", R"({"head_dim": 16})");
  const AttentionSpec& attention = attention_of(model, 0);

  EXPECT_EQ(model.layers[0].attention(), &attention);
  EXPECT_EQ(attention.head_dim, 16);
  EXPECT_EQ(attention.v_head_dim, 16);
  EXPECT_FLOAT_EQ(attention.scale, 0.25f);
  EXPECT_EQ(attention.heads, 4);
  EXPECT_EQ(attention.kv_heads, 2);
  EXPECT_EQ(attention.window, 0);
  EXPECT_EQ(attention.module, "model.layers.0.self_attn");
}

TEST(Llama, BiasesAreWhereTheConfigPutsThem) {
  const Lines lines =
      tensors_of(tiny_model("LlamaForCausalLM", R"({"attention_bias": true, "mlp_bias": true, "num_key_value_heads": null})"), 0);

  for (const char* bias :
       {"self_attn.q_proj.bias [16] query heads", "self_attn.k_proj.bias [16] kv heads", "self_attn.v_proj.bias [16] kv heads",
        "self_attn.o_proj.bias [16] rows", "mlp.gate_proj.bias [24] rows", "mlp.up_proj.bias [24] rows", "mlp.down_proj.bias [16] rows"})
    EXPECT_EQ(std::count(lines.begin(), lines.end(), bias), 1) << bias;
  EXPECT_EQ(lines.size(), 16u);
}

TEST(Llama, OneEosOfManyIsEnough) {
  EXPECT_EQ(tiny_model("LlamaForCausalLM", R"({"eos_token_id": [7, 8]})").eos_id, 7);
  EXPECT_EQ(tiny_model("LlamaForCausalLM", R"({"eos_token_id": null})").eos_id, -1);
}

TEST(Llama, TheEpsHasThreeNames) {
  for (const char* key : {"rms_norm_eps", "norm_eps", "layer_norm_epsilon"})
    EXPECT_FLOAT_EQ(tiny_model("LlamaForCausalLM", std::string(R"({")") + key + R"(": 0.25})").final_norm.eps, 0.25f) << key;
}

TEST(Models, TheModelTypeNamesAFamilyToo) {
  EXPECT_EQ(tiny_model("nemotron").family, "nemotron");
  EXPECT_EQ(tiny_model("qwen3").family, "qwen3");
}

TEST(Mistral, EveryLayerHasTheWindow) {
  EXPECT_EQ(windows_of(tiny_model("MistralForCausalLM", R"({"sliding_window": 5})")), (std::vector<int64_t>{5, 5, 5}));
  EXPECT_EQ(windows_of(tiny_model("MistralForCausalLM", R"({"sliding_window": null})")), (std::vector<int64_t>{0, 0, 0}));
  EXPECT_EQ(windows_of(tiny_model("MistralForCausalLM",
                                  R"({"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"]})")),
            (std::vector<int64_t>{0, 5, 0}));
}

TEST(Qwen2, OnlyQueriesKeysAndValuesHaveBiases) {
  Lines biases;
  for (const std::string& line : tensors_of(tiny_model("Qwen2ForCausalLM"), 1))
    if (line.find(".bias") != std::string::npos) biases.push_back(line);

  EXPECT_EQ(biases,
            (Lines{"self_attn.k_proj.bias [8] kv heads", "self_attn.q_proj.bias [16] query heads", "self_attn.v_proj.bias [8] kv heads"}));
}

TEST(Qwen2, TheWindowBeginsAtMaxWindowLayers) {
  EXPECT_EQ(windows_of(tiny_model("Qwen2ForCausalLM", R"({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1})")),
            (std::vector<int64_t>{0, 8, 8}));
  EXPECT_EQ(windows_of(tiny_model("Qwen2ForCausalLM", R"({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 1})")),
            (std::vector<int64_t>{0, 0, 0}));
  EXPECT_EQ(windows_of(tiny_model("Qwen2ForCausalLM", R"({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1,
                            "layer_types": ["sliding_attention", "full_attention", "full_attention"]})")),
            (std::vector<int64_t>{8, 0, 0}));
}

TEST(Qwen3, HeadsHaveNormsAndAWidthOfTheirOwn) {
  const ModelSpec model = tiny_model("Qwen3ForCausalLM", R"({"tie_word_embeddings": true})");

  const Lines lines = tensors_of(model, 0);
  for (const char* line :
       {"self_attn.q_norm.weight [128] whole", "self_attn.k_norm.weight [128] whole", "self_attn.q_proj.weight [512, 16] query heads",
        "self_attn.k_proj.weight [256, 16] kv heads", "self_attn.o_proj.weight [16, 512] rows"})
    EXPECT_EQ(std::count(lines.begin(), lines.end(), line), 1) << line;
  EXPECT_EQ(lines.size(), 11u);
  EXPECT_EQ(attention_of(model, 0).q_norm, "model.layers.0.self_attn.q_norm");
  EXPECT_EQ(model.rope.rotary_dim, 128);
  EXPECT_TRUE(model.tied);
  EXPECT_EQ(model.head_weight(), "model.embed_tokens.weight");
}

TEST(Nemotron, HasLayerNormsWithBiasesNoGateAndHalfARope) {
  const ModelSpec model = tiny_model("NemotronForCausalLM", R"({"head_dim": 8, "norm_eps": 1e-3})");

  EXPECT_EQ(tensors_of(model, 0), (Lines{"input_layernorm.bias [16] whole", "input_layernorm.weight [16] whole",
                                         "mlp.down_proj.weight [16, 24] rows", "mlp.up_proj.weight [24, 16] rows",
                                         "post_attention_layernorm.bias [16] whole", "post_attention_layernorm.weight [16] whole",
                                         "self_attn.k_proj.weight [16, 16] kv heads", "self_attn.o_proj.weight [16, 32] rows",
                                         "self_attn.q_proj.weight [32, 16] query heads", "self_attn.v_proj.weight [16, 16] kv heads"}));
  EXPECT_EQ(model.rope.rotary_dim, 4);
  EXPECT_EQ(model.final_norm.kind, NormSpec::Kind::kLayerNorm1p);
  EXPECT_FLOAT_EQ(model.final_norm.eps, 1e-3f);
  EXPECT_EQ(std::get<MlpSpec>(model.layers[0].blocks[1].body).kind, MlpSpec::Kind::kReluSquared);
  EXPECT_EQ(groups_of(model, 0, &LinearSpec::scale_group)[2], Lines{"mlp.up_proj"});
}

/// One layer per entry of block_configs.
ModelSpec nas(const std::string& blocks, int64_t layers, const std::string& more = "{}") {
  auto json = nlohmann::ordered_json{
      {"block_configs", nlohmann::ordered_json::parse(blocks)}, {"num_hidden_layers", layers}, {"num_key_value_heads", nullptr}};
  json.update(nlohmann::ordered_json::parse(more));
  return tiny_model("DeciLMForCausalLM", json.dump());
}

TEST(NemotronNas, EveryLayerIsWhatItsBlockSays) {
  const ModelSpec model = nas(R"([{"attention": {"n_heads_in_group": 4, "no_op": false}, "ffn": {"ffn_mult": 1.0}},
                                  {"attention": {"no_op": true, "n_heads_in_group": null}, "ffn": {"replace_with_linear": true}},
                                  {"attention": {"replace_with_linear": true}, "ffn": {"no_op": true, "ffn_mult": null}},
                                  {"attention": {"no_op": true}, "ffn": {"no_op": true}},
                                  {"attention": {"num_key_value_heads": 2}, "ffn": {"intermediate_size": 40, "hidden_act": "silu"}}])",
                              5);

  EXPECT_EQ(model.layers[0].attention()->kv_heads, 1);
  EXPECT_EQ(tensors_of(model, 0).size(), 9u);
  EXPECT_EQ(tensors_of(model, 1), (Lines{"mlp.linear_mlp.weight [16, 16] rows", "post_attention_layernorm.weight [16] whole"}));
  EXPECT_EQ(tensors_of(model, 2), (Lines{"input_layernorm.weight [16] whole", "self_attn.linear_attn.weight [16, 16] rows"}));
  EXPECT_EQ(tensors_of(model, 3), Lines{});
  EXPECT_TRUE(model.layers[3].blocks.empty());
  EXPECT_EQ(model.layers[4].attention()->kv_heads, 2);
  EXPECT_EQ(model.layers[4].linears.back().in, 40);
  EXPECT_EQ(model.layers[1].attention(), nullptr);
  EXPECT_EQ(model.layers[2].attention(), nullptr);
}

TEST(NemotronNas, MlpWidthsAreCutToIntegersBeforeTheyAreRaisedTo256) {
  const auto width = [](int64_t hidden, const char* mult) {
    const ModelSpec model = nas(R"([{"attention": {"no_op": true}, "ffn": {"ffn_mult": )" + std::string(mult) + "}}]", 1,
                                R"({"hidden_size": )" + std::to_string(hidden) + "}");
    return model.layers[0].linears[0].out;
  };

  EXPECT_EQ(width(8192, "1.3125"), 7168) << "a multiple of 256 stays";
  EXPECT_EQ(width(256, "4.5"), 768);
  EXPECT_EQ(width(256, "4.5001"), 768) << "768.02 is cut to 768";
  EXPECT_EQ(width(256, "4.51"), 1024);
  EXPECT_EQ(width(8192, "2.625"), 14336) << "Super-49B";
  EXPECT_EQ(width(16384, "4.875"), 53248) << "Ultra-253B";
}

}  // namespace
}  // namespace ptq::layers
