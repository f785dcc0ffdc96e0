// Where smoothing factors go, and that a layer computes the same once they went there.

#include <gtest/gtest.h>

#include <random>

#include "tests/unit/layers/described_model.h"
#include "tests/unit/layers/tiny_layer.h"

namespace ptq::layers {
namespace {

using test::Lines;

/// "READERS <- NORM" or "READERS <- rows of MODULE", without the layer's prefix.
Lines lines_of(const ModelSpec& model, size_t index) {
  const LayerSpec& layer = model.layers.at(index);
  const auto shortened = [&](const std::string& name) { return name.substr(layer.prefix.size() + 1); };
  Lines lines;
  for (const SmoothingGroup& group : smoothing_groups(layer)) {
    std::string line;
    for (const int linear : group.linears) line += shortened(layer.linears[static_cast<size_t>(linear)].module) + " ";
    if (group.feeds_experts) line += "experts ";
    const Fold& fold = group.fold;
    line += fold.kind == Fold::Kind::kNorm   ? "<- " + shortened(fold.norm.module)
            : fold.kind == Fold::Kind::kRows ? "<- rows of " + shortened(layer.linears[static_cast<size_t>(fold.linear)].module)
                                             : "<- nothing";
    if (fold.power != 1.0f) line += " to the power of " + std::to_string(fold.power).substr(0, 3);
    lines.push_back(line);
  }
  return lines;
}

const SmoothingGroup& group_of(const std::vector<SmoothingGroup>& groups, const LayerSpec& layer, const std::string& reader) {
  for (const SmoothingGroup& group : groups)
    for (const int linear : group.linears)
      if (layer.linears[static_cast<size_t>(linear)].module.ends_with(reader)) return group;
  throw bug("no group of " + reader);
}

const Lines kGated{"self_attn.o_proj <- rows of self_attn.v_proj", "self_attn.q_proj self_attn.k_proj self_attn.v_proj <- input_layernorm",
                   "mlp.down_proj <- rows of mlp.up_proj", "mlp.gate_proj mlp.up_proj <- post_attention_layernorm"};

TEST(SmoothingGroups, OfLlamaAndQwen3ComeBeforeWhatTheyChange) {
  EXPECT_EQ(lines_of(test::tiny_model("LlamaForCausalLM"), 1), kGated);
  EXPECT_EQ(lines_of(test::tiny_model("Qwen3ForCausalLM"), 0), kGated);
}

TEST(SmoothingGroups, OfHeadsThatShareValuesHaveTheirRows) {
  const ModelSpec model = test::tiny_model("LlamaForCausalLM");  // 4 heads of 4 over 2 kv heads
  const auto groups = smoothing_groups(model.layers[0]);

  EXPECT_EQ(group_of(groups, model.layers[0], "o_proj").fold.rows, (std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7}));
  const Fold& up = group_of(groups, model.layers[0], "down_proj").fold;
  ASSERT_EQ(up.rows.size(), 24u);
  for (int32_t c = 0; c < 24; ++c) EXPECT_EQ(up.rows[static_cast<size_t>(c)], c);
}

const char* const kLatent = R"({"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2,
    "v_head_dim": 3, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 8,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": true,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_nextn_predict_layers": 0, "hidden_act": "silu"})";

TEST(SmoothingGroups, OfLatentAttentionFoldIntoTheRowsOfItsValues) {
  const ModelSpec model = test::tiny_model("DeepseekV3ForCausalLM", kLatent);
  const Lines attention{"self_attn.o_proj <- rows of self_attn.kv_b_proj", "self_attn.kv_b_proj <- self_attn.kv_a_layernorm",
                        "self_attn.q_b_proj <- self_attn.q_a_layernorm",
                        "self_attn.q_a_proj self_attn.kv_a_proj_with_mqa <- input_layernorm"};
  Lines dense = attention, mixture = attention;
  dense.insert(dense.end(), kGated.begin() + 2, kGated.end());
  mixture.insert(mixture.end(), {"mlp.shared_experts.down_proj <- rows of mlp.shared_experts.up_proj",
                                 "mlp.shared_experts.gate_proj mlp.shared_experts.up_proj experts <- post_attention_layernorm"});

  EXPECT_EQ(lines_of(model, 0), dense);
  EXPECT_EQ(lines_of(model, 1), mixture);
  // A head has 4 rows of its key and then 3 of its value.
  EXPECT_EQ(group_of(smoothing_groups(model.layers[0]), model.layers[0], "o_proj").fold.rows,
            (std::vector<int32_t>{4, 5, 6, 11, 12, 13, 18, 19, 20, 25, 26, 27}));
}

TEST(SmoothingGroups, OfExpertsWithoutASharedOneAreTheNormsAlone) {
  const ModelSpec model = test::tiny_model("MixtralForCausalLM", R"({"num_local_experts": 4, "num_experts_per_tok": 2})");

  EXPECT_EQ(lines_of(model, 0), (Lines{kGated[0], kGated[1], "experts <- post_attention_layernorm"}));
  const Fold up = expert_fold(model.layers[0], 2);
  EXPECT_EQ(up.linear, model.layers[0].moe()->experts[2].up);
  EXPECT_EQ(up.rows.size(), 24u);
  EXPECT_EQ(up.rows.back(), 23);
}

TEST(SmoothingGroups, OfASquaredReluTakeTheRoot) {
  const ModelSpec model = test::tiny_model("NemotronForCausalLM", R"({"hidden_act": "relu2"})");

  EXPECT_EQ(lines_of(model, 0), (Lines{kGated[0], kGated[1], "mlp.down_proj <- rows of mlp.up_proj to the power of 0.5",
                                       "mlp.up_proj <- post_attention_layernorm"}));
}

TEST(SmoothingGroups, OfLayersWithoutAttentionAreThoseTheyHave) {
  const ModelSpec model = test::model_of(R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 16, "num_attention_heads": 2,
    "num_hidden_layers": 2, "vocab_size": 9, "block_configs": [{"attention": {"no_op": true}, "ffn": {"no_op": true}},
    {"attention": {"replace_with_linear": true}, "ffn": {"replace_with_linear": true}}]})");

  EXPECT_EQ(lines_of(model, 0), Lines());
  EXPECT_EQ(lines_of(model, 1), (Lines{"self_attn.linear_attn <- input_layernorm", "mlp.linear_mlp <- post_attention_layernorm"}));
}

using Tensors = std::map<std::string, Tensor>;

Tensor forward(const ModelSpec& model, const Tensors& tensors) {
  const Batch batch = make_batch(0, {11, 1, 6});
  Tensor hidden = test::random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
  const RopeTables rope = make_rope_tables(model.rope, 11);
  Workspace workspace;
  LayerHooks hooks;
  const auto self = parallel::make_self_communicator();
  forward_layer(model.layers[0], test::slice_of(model.layers[0], tensors, 1, 0), batch,
                {DType::kF32, &rope, model.rope.rotary_dim, self.get(), &hooks, &workspace}, hidden);
  return hidden;
}

void multiply(Tensor& vector, int64_t at, float factor) { vector.data<float>()[at] *= factor; }

/// Divides by factors what makes the group's channels, and multiplies the columns that read them.
void fold_random_factors(const LayerSpec& layer, const SmoothingGroup& group, Tensors& tensors, std::mt19937_64& random) {
  const LinearSpec& first = layer.linears[static_cast<size_t>(group.linears.front())];
  std::uniform_real_distribution<float> exponent(-2, 2);
  std::vector<float> factors(static_cast<size_t>(first.in));
  for (float& factor : factors) factor = std::exp2(exponent(random));
  const Fold& fold = group.fold;
  if (fold.kind == Fold::Kind::kRows) {
    const LinearSpec& maker = layer.linears[static_cast<size_t>(fold.linear)];
    std::map<int32_t, float> of_row;
    for (size_t c = 0; c < factors.size(); ++c) factors[c] = of_row.try_emplace(fold.rows[c], factors[c]).first->second;
    for (const auto& [row, factor] : of_row) {
      for (int64_t i = 0; i < maker.in; ++i)
        multiply(tensors.at(maker.tensor(".weight")), row * maker.in + i, std::pow(factor, -fold.power));
      if (maker.has_bias) multiply(tensors.at(maker.tensor(".bias")), row, std::pow(factor, -fold.power));
    }
  } else {
    ASSERT_EQ(fold.kind, Fold::Kind::kNorm);
    const float one = fold.norm.kind == NormSpec::Kind::kLayerNorm1p ? 1.0f : 0.0f;
    Tensor& norm = tensors.at(fold.norm.module + ".weight");
    for (int64_t c = 0; c < first.in; ++c) {
      float& weight = norm.data<float>()[c];
      weight = (weight + one) / factors[static_cast<size_t>(c)] - one;
      if (one > 0) multiply(tensors.at(fold.norm.module + ".bias"), c, 1 / factors[static_cast<size_t>(c)]);
    }
  }
  for (const int linear : group.linears) {
    const LinearSpec& reader = layer.linears[static_cast<size_t>(linear)];
    for (int64_t r = 0; r < reader.out; ++r)
      for (int64_t c = 0; c < reader.in; ++c)
        multiply(tensors.at(reader.tensor(".weight")), r * reader.in + c, factors[static_cast<size_t>(c)]);
  }
}

void expect_exact(const ModelSpec& model, size_t groups) {
  Tensors tensors = test::random_layer(model.layers[0], DType::kF32, 3);
  const std::vector<float> before = test::values_of(forward(model, tensors));
  std::mt19937_64 random(5);
  const auto all = smoothing_groups(model.layers[0]);
  EXPECT_EQ(all.size(), groups);
  for (const SmoothingGroup& group : all) {
    fold_random_factors(model.layers[0], group, tensors, random);
    EXPECT_LT(test::relative_error(forward(model, tensors), {before.begin(), before.end()}), 2e-5)
        << model.layers[0].linears[static_cast<size_t>(group.linears.front())].module;
  }
}

TEST(Folding, LeavesWhatALayerComputes) {
  expect_exact(test::tiny_model("LlamaForCausalLM", R"({"attention_bias": true, "mlp_bias": true})"), 4);
  expect_exact(test::tiny_model("Qwen3ForCausalLM"), 4);
  expect_exact(test::tiny_model("DeepseekV3ForCausalLM", kLatent), 6);
  expect_exact(test::tiny_model("NemotronForCausalLM", R"({"hidden_act": "relu2"})"), 4);
}

}  // namespace
}  // namespace ptq::layers
