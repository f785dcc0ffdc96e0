// The promise behind rows-only sharding: a layer on several tensor ranks gives the bits of one rank.

#include "layers/layer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/mpi/world.h"
#include "tests/unit/layers/tiny_layer.h"

namespace ptq::layers {
namespace {

using test::world;

/// Keeps a copy of everything a layer shows.
class Recorder : public LayerHooks {
 public:
  void linear_input(const LayerSpec&, int input_group, const Tensor& x, const Batch&) override { inputs[input_group] = copy(x); }
  void key_value(const LayerSpec&, Tensor& k, Tensor& v, const Batch&) override {
    key_width = k.dim(1);
    value_width = v.dim(1);
  }

  std::map<int, Tensor> inputs;
  int64_t key_width = 0, value_width = 0;

 private:
  static Tensor copy(const Tensor& x) {
    Tensor y = Tensor::empty(x.shape(), x.dtype());
    std::copy(x.raw(), x.raw() + x.bytes(), y.raw());
    return y;
  }
};

Tensor forward(const ModelSpec& model, const std::map<std::string, Tensor>& tensors, DType operand, parallel::Communicator& group,
               Recorder& recorder) {
  const LayerSpec& layer = model.layers[0];
  const Batch batch = make_batch(0, {37, 1, 20});
  Tensor hidden = test::random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
  const RopeTables rope = make_rope_tables(model.rope, 37);
  Workspace workspace;
  const Tensor routed = forward_layer(layer, test::slice_of(layer, tensors, group.size(), group.rank()), batch,
                                      {operand, &rope, model.rope.rotary_dim, &group, &recorder, &workspace}, hidden);
  if (routed.defined()) recorder.linear_input(layer, -1, routed, batch);
  return hidden;
}

void expect_the_bits_of_one_rank(const std::string& json, DType dtype, DType operand) {
  const ModelSpec model = test::model_of(json);
  const auto tensors = test::random_layer(model.layers[0], dtype, 3);
  const auto self = parallel::make_self_communicator();
  Recorder alone, together;
  EXPECT_NO_THROW(check_tensor_ranks(model, world().size()));

  const Tensor one = forward(model, tensors, operand, *self, alone), many = forward(model, tensors, operand, world(), together);

  EXPECT_TRUE(test::same_bits(one, many));
  EXPECT_EQ(alone.inputs.size(), together.inputs.size());
  for (const auto& [group, x] : alone.inputs) EXPECT_TRUE(test::same_bits(x, together.inputs[group])) << "input group " << group;
  if (const AttentionHeads* attention = model.layers[0].attention()) {
    const int64_t local = std::max<int64_t>(1, attention->kv_heads / world().size());
    EXPECT_EQ(alone.key_width, attention->head_dim * attention->kv_heads);
    EXPECT_EQ(together.key_width, attention->head_dim * local);
    EXPECT_EQ(alone.value_width, attention->v_head_dim * attention->kv_heads);
    EXPECT_EQ(together.value_width, attention->v_head_dim * local);
  }
}

constexpr const char* kGroupedHeads = R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 35, "num_attention_heads": 24,
  "num_key_value_heads": 12, "head_dim": 8, "intermediate_size": 50, "num_hidden_layers": 1, "vocab_size": 9,
  "attention_bias": true, "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 0})";

TEST(TensorRanks, GiveTheBitsOfOneRank) {
  expect_the_bits_of_one_rank(kGroupedHeads, DType::kBF16, DType::kBF16);
  expect_the_bits_of_one_rank(kGroupedHeads, DType::kF32, DType::kF32);
}

TEST(TensorRanks, GiveTheSameBitsWhereKeyValueHeadsAreShared) {
  expect_the_bits_of_one_rank(
      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 1,
    "intermediate_size": 70, "num_hidden_layers": 1, "vocab_size": 9, "mlp_bias": true})",
      DType::kBF16, DType::kBF16);
}

TEST(TensorRanks, GiveTheSameBitsForNemotron) {
  expect_the_bits_of_one_rank(
      R"({"architectures": ["NemotronForCausalLM"], "hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 12,
    "intermediate_size": 71, "num_hidden_layers": 1, "vocab_size": 9})",
      DType::kBF16, DType::kBF16);
}

/// 12 heads of 6 + 4 with values of 5; q_lora_rank, kv_lora_rank and the fused width divide by no number of ranks here.
std::string deepseek(const std::string& query_rank, int dense_layers) {
  return R"({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 35, "num_attention_heads": 12, "num_key_value_heads": 12,
    "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "kv_lora_rank": 25, "intermediate_size": 50,
    "moe_intermediate_size": 11, "num_hidden_layers": 1, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "vocab_size": 9, "first_k_dense_replace": )" +
         std::to_string(dense_layers) + R"(, "q_lora_rank": )" + query_rank + "}";
}

TEST(TensorRanks, GiveTheSameBitsForLatentAttention) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    expect_the_bits_of_one_rank(deepseek("31", 1), dtype, dtype);
    expect_the_bits_of_one_rank(deepseek("null", 1), dtype, dtype);
  }
}

TEST(TensorRanks, GiveTheSameBitsToWhatRoutedExpertsRead) { expect_the_bits_of_one_rank(deepseek("31", 0), DType::kBF16, DType::kBF16); }

TEST(TensorRanks, ShareTheSinksOfTheirHeads) {
  expect_the_bits_of_one_rank(
      R"({"architectures": ["GptOssForCausalLM"], "hidden_size": 35, "num_attention_heads": 24, "num_key_value_heads": 12, "head_dim": 8,
    "intermediate_size": 10, "num_hidden_layers": 1, "vocab_size": 9, "num_local_experts": 3, "num_experts_per_tok": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "sliding_window": 5})",
      DType::kBF16, DType::kBF16);
}

TEST(TensorRanks, GiveTheSameBitsForLlama4) {
  for (const char* rope : {"1", "0"})
    expect_the_bits_of_one_rank(std::string(R"({"architectures": ["Llama4ForCausalLM"], "hidden_size": 35, "num_attention_heads": 12,
    "num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 14, "intermediate_size_mlp": 30, "num_hidden_layers": 1, "vocab_size": 9,
    "num_local_experts": 3, "num_experts_per_tok": 1, "attention_chunk_size": 16, "floor_scale": 3, "no_rope_layers": [)") +
                                    rope + "]}",
                                DType::kBF16, DType::kBF16);
}

TEST(TensorRanks, GiveTheSameBitsForALayerOfSingleLinears) {
  expect_the_bits_of_one_rank(
      R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 34, "num_attention_heads": 2, "head_dim": 8, "num_hidden_layers": 1,
    "vocab_size": 9, "block_configs": [{"attention": {"replace_with_linear": true}, "ffn": {"replace_with_linear": true}}]})",
      DType::kBF16, DType::kBF16);
}

}  // namespace
}  // namespace ptq::layers
