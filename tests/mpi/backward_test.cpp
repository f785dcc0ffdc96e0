// The promise of the way back: on several tensor or expert ranks it gives the bits of one rank.

#include "layers/backward.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/mpi/token_deals.h"
#include "tests/unit/layers/layer_kinds.h"
#include "tests/unit/layers/whole_layer.h"

namespace ptq::layers {
namespace {

using test::world;

/// Keeps copies of what every linear made and of the gradient by it.
class Recorder : public GradientHooks {
 public:
  void linear_gradient(const LayerSpec&, int linear, const Tensor&, const Tensor& y, const Tensor& dy, const Batch&) override {
    outputs[linear] = test::copy_of(y);
    gradients[linear] = test::copy_of(dy);
  }
  void expert_gradient(const LayerSpec&, int, int, const Tensor& x, const Tensor&, const Tensor&, const ExpertVisits&) override {
    visits += x.dim(0);
  }
  void key_value_gradient(const LayerSpec&, const Tensor& k, const Tensor& v, const Tensor& dk, const Tensor& dv) override {
    keys = {test::copy_of(k), test::copy_of(dk)};
    values = {test::copy_of(v), test::copy_of(dv)};
  }

  std::map<int, Tensor> outputs, gradients;
  std::vector<Tensor> keys, values;  ///< what is cached, and the gradient by it
  int64_t visits = 0;
};

Tensor columns_of(const Tensor& x, parallel::Range columns) {
  Tensor out = Tensor::empty({x.dim(0), columns.size()}, x.dtype());
  kernels::slice_columns(x, columns.begin, out);
  return out;
}

/// Of the kv heads of this rank, each of `width` channels.
parallel::Range kv_columns(const AttentionHeads& attention, int64_t width) {
  LinearSpec heads;
  heads.split = Split::kKeyValueHeads;
  heads.out = attention.kv_heads * width;
  return tensor_slice(heads, &attention, world().size(), world().rank());
}

TEST(TensorRanks, GiveTheGradientsOfOneRank) {
  for (const test::LayerKind& kind : test::layer_kinds())
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(kind.name);
      const ModelSpec model = test::model_of(kind.config);
      const LayerSpec& layer = model.layers[0];
      if (layer.attention() && layer.attention()->kv_heads == 2 && world().size() == 3) continue;  // refused by check_tensor_ranks
      const auto tensors = test::random_layer(layer, dtype, 3);
      const Batch batch = make_batch(0, {37, 1, 20});
      const RopeTables rope = make_rope_tables(model.rope, 37);
      const auto self = parallel::make_self_communicator();
      const Tensor hidden = test::random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
      Tensor one = test::random_tensor(hidden.shape(), DType::kF32, 8), many = test::copy_of(one);
      Recorder alone, together;

      test::WholeLayer(model, layer, tensors, rope, dtype, *self).backward(batch, hidden, alone, one);
      test::WholeLayer(model, layer, tensors, rope, dtype, world()).backward(batch, hidden, together, many);

      EXPECT_TRUE(test::same_bits(one, many));
      EXPECT_EQ(alone.gradients.size(), together.gradients.size());
      EXPECT_EQ(alone.keys.size(), layer.attention() ? 2u : 0u);
      for (size_t i = 0; i < alone.keys.size(); ++i) {
        const parallel::Range keys = kv_columns(*layer.attention(), layer.attention()->head_dim),
                              values = kv_columns(*layer.attention(), layer.attention()->v_head_dim);
        EXPECT_TRUE(test::same_bits(columns_of(alone.keys[i], keys), together.keys[i])) << i;
        EXPECT_TRUE(test::same_bits(columns_of(alone.values[i], values), together.values[i])) << i;
      }
      for (const auto& [linear, dy] : alone.gradients) {
        const LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
        const parallel::Range mine = tensor_slice(spec, layer.attention(), world().size(), world().rank());
        EXPECT_TRUE(test::same_bits(columns_of(dy, mine), together.gradients[linear])) << spec.module;
        EXPECT_TRUE(test::same_bits(columns_of(alone.outputs[linear], mine), together.outputs[linear])) << spec.module;
      }
    }
}

GradientGroup some_gradients(const TokenGroup& tokens, const Tensor& gradient, const Tensor& x_gradient, const std::vector<int64_t>& rows) {
  GradientGroup group;
  group.tokens = test::some_tokens(tokens, rows);
  group.gradient = test::rows_of(gradient, rows);
  group.x_gradient = test::rows_of(x_gradient, rows);
  group.weight_gradient = Tensor::zeros(group.tokens.weights.shape(), DType::kF32);
  return group;
}

void run_back(const test::TinyExperts& model, int64_t per_chunk, DType operand, parallel::Communicator& ranks, int64_t exchange_tokens,
              Recorder& recorder, GradientGroup& group) {
  LayerHooks nothing;
  Workspace workspace;
  for (const parallel::Range& chunk : test::chunks_of(model.sizes().experts, per_chunk))
    backward_experts(model.layer, {chunk, [&](int e) { return model.weights(e); }},
                     {operand, &nothing, &workspace, &ranks, exchange_tokens}, recorder, group);
}

TEST(ExpertRanks, GiveTheGradientsOfOneRank) {
  constexpr int64_t kTokens = 47;
  for (const test::ExpertKind& kind : test::expert_kinds())
    for (const DType operand : {DType::kBF16, DType::kF32}) {
      const test::TinyExperts model(kind, {}, operand);
      const TokenGroup tokens = test::routed_tokens(model, kTokens, operand);
      const Tensor gradient = test::random_tensor(tokens.hidden.shape(), DType::kF32, 9),
                   x_gradient = test::random_tensor(tokens.hidden.shape(), DType::kF32, 10);
      std::vector<int64_t> all(kTokens);
      std::iota(all.begin(), all.end(), int64_t{0});
      const auto self = parallel::make_self_communicator();
      GradientGroup one = some_gradients(tokens, gradient, x_gradient, all);
      Recorder alone;
      run_back(model, model.sizes().experts, operand, *self, 0, alone, one);
      for (const test::Deal& deal : test::deals())
        for (const int64_t exchange_tokens : {1000, 17})
          for (const int64_t per_chunk : {5, 2}) {
            SCOPED_TRACE(kind.name + ", " + deal.name + ", " + std::to_string(exchange_tokens) + " tokens at a time, chunks of " +
                         std::to_string(per_chunk));
            const std::vector<int64_t> mine = deal.mine(kTokens);
            GradientGroup many = some_gradients(tokens, gradient, x_gradient, mine);
            Recorder together;

            run_back(model, per_chunk, operand, world(), exchange_tokens, together, many);
            world().all_reduce_sum(std::span<int64_t>(&together.visits, 1));

            EXPECT_TRUE(test::same_bits(many.x_gradient, test::rows_of(one.x_gradient, mine)));
            EXPECT_TRUE(test::same_bits(many.weight_gradient, test::rows_of(one.weight_gradient, mine)));
            EXPECT_EQ(together.visits, alone.visits);
          }
    }
}

TEST(ExpertRanks, KeepInStepWithoutWeights) {
  const test::TinyExperts model({}, {}, DType::kF32);
  const TokenGroup tokens = test::routed_tokens(model, 47, DType::kF32);
  const Tensor zeros = Tensor::zeros(tokens.hidden.shape(), DType::kF32);
  GradientGroup group = some_gradients(tokens, zeros, zeros, test::deals().front().mine(47));
  LayerHooks nothing;
  GradientHooks hooks;
  Workspace workspace;

  backward_experts(model.layer, {{0, model.sizes().experts}, [](int) -> ExpertWeights { throw bug("asked for weights"); }, true},
                   {DType::kF32, &nothing, &workspace, &world(), 17}, hooks, group);

  EXPECT_TRUE(test::same_bits(group.x_gradient, Tensor::zeros(group.x_gradient.shape(), DType::kF32)));
}

}  // namespace
}  // namespace ptq::layers
