#include "layers/layer.h"

#include <gtest/gtest.h>

#include "tests/unit/layers/plain_layer.h"

namespace ptq::layers {
namespace {

using test::expect_plain;
using test::Witness;

TEST(ForwardLayer, LlamaWithFewerKeyValueHeadsAndASlidingWindow) {
  const ModelSpec model = test::model_of(R"({"architectures": ["MistralForCausalLM"], "hidden_size": 24, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 50, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-5,
    "rope_theta": 100.0, "sliding_window": 5})");
  Witness witness;

  expect_plain(model, {.heads = 6, .kv_heads = 2, .head_dim = 8, .rotary_dim = 8, .window = 5, .theta = 100}, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 24}, {1, 48}, {2, 24}, {3, 50}}));
  EXPECT_EQ(witness.linears.size(), 7u) << "every linear asks for its input";
  EXPECT_EQ(witness.key_value_widths, (std::pair<int64_t, int64_t>{16, 16}));
}

TEST(ForwardLayer, LlamaWithBiases) {
  const ModelSpec model = test::model_of(R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 24, "num_attention_heads": 3,
    "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-3, "attention_bias": true, "mlp_bias": true})");
  Witness witness;

  expect_plain(model, {.heads = 3, .kv_heads = 3, .head_dim = 8, .rotary_dim = 8, .eps = 1e-3}, witness);
}

TEST(ForwardLayer, Qwen3NormsTheHeadsBeforeItTurnsThem) {
  const ModelSpec model = test::model_of(R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 20, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 30, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-5})");
  Witness witness;

  expect_plain(model, {.heads = 4, .kv_heads = 2, .head_dim = 6, .rotary_dim = 6}, witness);
}

TEST(ForwardLayer, NemotronTurnsHalfAHeadAndSquaresItsMlp) {
  const ModelSpec model = test::model_of(R"({"architectures": ["NemotronForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 9, "norm_eps": 1e-5})");
  Witness witness;

  expect_plain(model, {.heads = 4, .kv_heads = 2, .head_dim = 8, .rotary_dim = 4, .layer_norm_1p = true, .relu_squared = true}, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 32}, {1, 32}, {2, 32}, {3, 48}}));
  EXPECT_EQ(witness.linears.size(), 6u);
}

TEST(ForwardLayer, DeciLmReplacesAttentionByOneLinear) {
  const ModelSpec model = test::model_of(R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": null, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-5,
    "block_configs": [{"attention": {"replace_with_linear": true}, "ffn": {"replace_with_linear": true}}]})");
  Witness witness;

  expect_plain(model, {}, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 16}, {1, 16}}));
}

TEST(ForwardLayer, ALayerOfNoOpsChangesNothing) {
  const ModelSpec model = test::model_of(R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 16, "num_attention_heads": 2,
    "num_hidden_layers": 1, "vocab_size": 9, "block_configs": [{"attention": {"no_op": true}, "ffn": {"no_op": true}}]})");
  Witness witness;

  expect_plain(model, {}, witness);

  EXPECT_TRUE(witness.linears.empty());
}

TEST(Batch, CountsPositionsFromEachSequencesStart) {
  const Batch batch = make_batch(40, {3, 1, 2});

  EXPECT_EQ(batch.starts, (std::vector<int64_t>{0, 3, 4, 6}));
  EXPECT_EQ(batch.tokens(), 6);
  const int32_t* const positions = batch.positions.data<int32_t>();
  EXPECT_EQ(std::vector<int32_t>(positions, positions + 6), (std::vector<int32_t>{0, 1, 2, 0, 0, 1}));
  const std::vector<int64_t> rows{40, 40, 40, 41, 42, 42};
  for (int64_t t = 0; t < 6; ++t) EXPECT_EQ(batch.row_of(t), rows[static_cast<size_t>(t)]) << t;
}

TEST(Workspace, GivesTheSameMemoryForTheSameNameUntilMoreIsAsked) {
  Workspace workspace;

  const Tensor first = workspace.get("x", {4, 8}, DType::kF32), smaller = workspace.get("x", {5, 3}, DType::kBF16);
  const Tensor other = workspace.get("y", {4, 8}, DType::kF32);

  EXPECT_EQ(first.raw(), smaller.raw());
  EXPECT_NE(first.raw(), other.raw());
  EXPECT_EQ(smaller.shape(), (Shape{5, 3}));
  EXPECT_EQ(smaller.dtype(), DType::kBF16);
  EXPECT_EQ(workspace.bytes(), 2 * 4 * 8 * 4);
  EXPECT_EQ(workspace.get("x", {100, 8}, DType::kF32).shape(), (Shape{100, 8}));
  EXPECT_EQ(workspace.bytes(), (100 + 4) * 8 * 4);
}

}  // namespace
}  // namespace ptq::layers
