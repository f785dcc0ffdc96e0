// DeepSeek's latent attention against its formulas.

#include <gtest/gtest.h>

#include "tests/unit/layers/plain_layer.h"

namespace ptq::layers {
namespace {

using test::expect_plain;
using test::PlainLayer;
using test::Witness;

/// 3 heads of 10 + 6 with values of 12, a latent of 14; one dense layer.
ModelSpec deepseek(const std::string& more) {
  return test::model_of(R"({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 20, "num_attention_heads": 3,
    "num_key_value_heads": 3, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 12, "kv_lora_rank": 14,
    "intermediate_size": 30, "moe_intermediate_size": 8, "num_hidden_layers": 1, "first_k_dense_replace": 1, "n_routed_experts": 4,
    "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1, "vocab_size": 9, "rms_norm_eps": 1e-5, )" +
                        more + "}");
}

const PlainLayer::Choices kDeepseek{.heads = 3,
                                    .kv_heads = 3,
                                    .head_dim = 16,
                                    .rotary_dim = 6,
                                    .theta = 40,
                                    .interleaved = true,
                                    .latent = 14,
                                    .nope = 10,
                                    .v_head_dim = 12};

TEST(LatentAttention, QueriesComeOutOfALatentToo) {
  Witness witness;

  expect_plain(deepseek(R"("q_lora_rank": 18, "rope_theta": 40.0)"), kDeepseek, witness);

  // x, both latents, what o reads, and the MLP's two.
  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 20}, {1, 18}, {2, 14}, {3, 36}, {4, 20}, {5, 30}}));
  EXPECT_EQ(witness.linears.size(), 8u);
  EXPECT_EQ(witness.key_value_widths, (std::pair<int64_t, int64_t>{48, 36}));
}

TEST(LatentAttention, QueriesMayComeStraightFromTheHiddenState) {
  Witness witness;

  expect_plain(deepseek(R"("q_lora_rank": null, "rope_theta": 40.0)"), kDeepseek, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 20}, {1, 14}, {2, 36}, {3, 20}, {4, 30}}));
  EXPECT_EQ(witness.linears.size(), 7u);
}

TEST(LatentAttention, MayHaveBiases) {
  Witness witness;

  expect_plain(deepseek(R"("q_lora_rank": 18, "rope_theta": 40.0, "attention_bias": true)"), kDeepseek, witness);
}

TEST(LatentAttention, YarnTurnsBySlowerFrequenciesAndRaisesTheScale) {
  const ModelSpec model = deepseek(R"("q_lora_rank": 18, "rope_theta": 40.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
    "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5})");
  PlainLayer::Choices choices = kDeepseek;
  for (const float f : inverse_frequencies(model.rope)) choices.frequencies.push_back(static_cast<double>(f));
  EXPECT_LT(choices.frequencies.back(), std::pow(40.0, -4.0 / 6.0)) << "yarn changes nothing here";
  const double m = 0.1 * 0.5 * std::log(4.0) + 1, table_factor = (0.1 * std::log(4.0) + 1) / m;
  Witness witness;

  // mscale and mscale_all_dim differ: the tables carry their quotient, which only the rotated dims see.
  choices.scale = m * m / std::sqrt(16.0);
  choices.table_factor = table_factor;
  expect_plain(model, choices, witness);
}

}  // namespace
}  // namespace ptq::layers
