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
  void key_value(const LayerSpec&, Tensor& k, Tensor&, const Batch&) override { key_width = k.dim(1); }

  std::map<int, Tensor> inputs;
  int64_t key_width = 0;

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
  forward_layer(layer, test::slice_of(layer, tensors, group.size(), group.rank()), batch,
                {operand, &rope, model.rope.rotary_dim, &group, &recorder, &workspace}, hidden);
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
  if (const AttentionSpec* attention = model.layers[0].attention()) {
    EXPECT_EQ(alone.key_width, attention->head_dim * attention->kv_heads);
    EXPECT_EQ(together.key_width, attention->head_dim * std::max<int64_t>(1, attention->kv_heads / world().size()));
  }
}

constexpr const char* kGroupedHeads = R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 35, "num_attention_heads": 12,
  "num_key_value_heads": 6, "head_dim": 8, "intermediate_size": 50, "num_hidden_layers": 1, "vocab_size": 9,
  "attention_bias": true, "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 0})";

TEST(TensorRanks, GiveTheBitsOfOneRank) {
  expect_the_bits_of_one_rank(kGroupedHeads, DType::kBF16, DType::kBF16);
  expect_the_bits_of_one_rank(kGroupedHeads, DType::kF32, DType::kF32);
}

TEST(TensorRanks, GiveTheSameBitsWhereKeyValueHeadsAreShared) {
  expect_the_bits_of_one_rank(
      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 1,
    "intermediate_size": 70, "num_hidden_layers": 1, "vocab_size": 9, "mlp_bias": true})",
      DType::kBF16, DType::kBF16);
}

TEST(TensorRanks, GiveTheSameBitsForNemotron) {
  expect_the_bits_of_one_rank(
      R"({"architectures": ["NemotronForCausalLM"], "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6,
    "intermediate_size": 71, "num_hidden_layers": 1, "vocab_size": 9})",
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
