// What some families' attention has besides the usual: sinks, chunks, a temperature, norms without weights, pairs that turn in place.

#include <gtest/gtest.h>

#include "tests/unit/layers/plain_layer.h"

namespace ptq::layers {
namespace {

using test::expect_plain;
using test::PlainLayer;
using test::Witness;

/// Llama 4 with 4 heads of 6 over 2 kv heads; layer 0 has a dense MLP unless `more` says otherwise.
ModelSpec llama4(const std::string& more) {
  return test::model_of(R"({"architectures": ["Llama4ForCausalLM"], "hidden_size": 20, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 14, "intermediate_size_mlp": 30, "num_hidden_layers": 1, "vocab_size": 9,
    "num_local_experts": 3, "num_experts_per_tok": 1, "rope_theta": 50.0, "attention_chunk_size": 4, "floor_scale": 3, "attn_scale": 0.3, )" +
                        more + "}");
}

const PlainLayer::Choices kLlama4{.heads = 4, .kv_heads = 2, .head_dim = 6, .mlp = ".feed_forward"};

TEST(Attention, Llama4TurnsPairsInPlaceAndNormsTheHeadsAfterIt) {
  const ModelSpec model = llama4(R"("no_rope_layers": [1], "moe_layers": [])");
  Witness witness;
  PlainLayer::Choices choices = kLlama4;
  choices.rotary_dim = 6;
  choices.theta = 50;
  choices.interleaved = choices.l2_norm = true;
  choices.chunk = 4;

  expect_plain(model, choices, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 20}, {1, 24}, {2, 20}, {3, 30}}));
}

TEST(Attention, Llama4WithoutRopeSeesEverythingAndWarmsUpItsQueries) {
  const ModelSpec model = llama4(R"("no_rope_layers": [0], "moe_layers": [])");
  Witness witness;
  PlainLayer::Choices choices = kLlama4;
  choices.temperature = 0.3;
  choices.temperature_floor = 3;

  expect_plain(model, choices, witness);
}

TEST(Attention, GptOssHasSinksBiasesAndAWindow) {
  const std::string config = R"({"architectures": ["GptOssForCausalLM"], "hidden_size": 20, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 10, "num_hidden_layers": 2, "vocab_size": 9, "num_local_experts": 3,
    "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "sliding_window": 5, "layer_types": )";
  PlainLayer::Choices choices{.heads = 6, .kv_heads = 2, .head_dim = 8, .rotary_dim = 8, .window = 5, .theta = 100};
  {
    Witness witness;
    expect_plain(test::model_of(config + R"(["sliding_attention", "full_attention"]})"), choices, witness);
    EXPECT_EQ(witness.linears.size(), 4u) << "the experts' linears are not computed here";
    EXPECT_EQ(witness.inputs.size(), 3u) << "what q, k and v read, what o reads, and what the router and the experts read";
  }
  choices.window = 0;
  Witness witness;
  expect_plain(test::model_of(config + R"(["full_attention", "sliding_attention"]})"), choices, witness);
}

TEST(Attention, Glm4TurnsHalfAHeadThatHasANorm) {
  const ModelSpec model = test::model_of(R"({"architectures": ["Glm4MoeForCausalLM"], "hidden_size": 20, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 30, "moe_intermediate_size": 6, "num_hidden_layers": 1, "vocab_size": 9,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "use_qk_norm": true, "attention_bias": true, "rope_theta": 300.0,
    "rms_norm_eps": 1e-5})");
  Witness witness;

  expect_plain(model, {.heads = 4, .kv_heads = 2, .head_dim = 8, .rotary_dim = 4, .theta = 300}, witness);
}

TEST(ForwardLayer, SharedExpertsAreComputedAndRoutedOnesAreNot) {
  const ModelSpec model = llama4(R"("no_rope_layers": [0], "moe_layers": [0])");
  Witness witness;
  PlainLayer::Choices choices = kLlama4;
  choices.temperature = 0.3;
  choices.temperature_floor = 3;
  choices.mlp = ".feed_forward.shared_expert";

  expect_plain(model, choices, witness);

  for (const std::string& linear : witness.linears) EXPECT_EQ(linear.find(".experts."), std::string::npos) << linear;
  EXPECT_EQ(witness.linears.size(), 7u) << "four of attention, three of the shared expert";
}

}  // namespace
}  // namespace ptq::layers
