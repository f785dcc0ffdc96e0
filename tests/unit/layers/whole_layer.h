#pragma once
// A layer with its routed experts, forward and back, on nothing but tensors by name: all experts in memory on every rank.

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "layers/backward.h"
#include "tests/unit/layers/tiny_layer.h"

namespace ptq::test {

inline Tensor copy_of(const Tensor& x) {
  const Tensor copy = Tensor::empty(x.shape(), x.dtype());
  std::copy_n(x.raw(), x.bytes(), copy.raw());
  return copy;
}

class WholeLayer {
 public:
  /// Keeps references to all but the operand's dtype. `tensors` are whole, `group` are the tensor ranks.
  WholeLayer(const layers::ModelSpec& model, const layers::LayerSpec& layer, const std::map<std::string, Tensor>& tensors,
             const layers::RopeTables& rope, DType operand, parallel::Communicator& group)
      : layer_(layer),
        tensors_(tensors),
        weights_(slice_of(layer, tensors, group.size(), group.rank())),
        columns_(layers::weight_columns(layer, weights_, group)),
        forward_{operand, &rope, model.rope.rotary_dim, &group, &nothing_, &workspace_} {
    if (!layer.moe()) return;
    for (int e = 0; e < layer.moe()->router.experts; ++e) experts_.push_back(expert(e));
  }
  WholeLayer(const WholeLayer&) = delete;

  /// Of everything but routed experts; the default does nothing.
  void set_hooks(layers::LayerHooks& hooks) { forward_.hooks = &hooks; }

  /// hidden [T, H] f32 becomes the layer's output.
  void forward(const layers::Batch& batch, Tensor& hidden) {
    layers::TokenGroup tokens = routed(batch, hidden);
    if (tokens.x.defined()) layers::forward_experts(layer_, all_experts(), {}, expert_context(), tokens);
  }

  /// hidden: the layer's input; gradient [T, H] f32 by its output becomes that by its input.
  void backward(const layers::Batch& batch, const Tensor& hidden, layers::GradientHooks& hooks, Tensor& gradient) {
    const layers::BackwardContext context{forward_, &columns_, &hooks};
    if (!layer_.moe()) {
      layers::backward_layer(layer_, weights_, batch, context, hidden, nullptr, gradient);
      return;
    }
    Tensor scratch = copy_of(hidden);
    layers::GradientGroup group;
    group.tokens = routed(batch, scratch);
    group.tokens.x = copy_of(group.tokens.x);
    group.gradient = gradient;
    group.x_gradient = Tensor::zeros(gradient.shape(), DType::kF32);
    group.weight_gradient = Tensor::empty(group.tokens.weights.shape(), DType::kF32);
    layers::backward_experts(layer_, all_experts(), expert_context(), hooks, group);
    const layers::RoutedGradient back{group.x_gradient, group.weight_gradient, group.tokens.experts, group.tokens.weights};
    layers::backward_layer(layer_, weights_, batch, context, hidden, &back, gradient);
  }

 private:
  /// hidden gets everything but the routed experts; their tokens, or none.
  layers::TokenGroup routed(const layers::Batch& batch, Tensor& hidden) {
    layers::TokenGroup tokens;
    tokens.x = layers::forward_layer(layer_, weights_, batch, forward_, hidden);
    if (!tokens.x.defined()) return tokens;
    tokens.hidden = hidden;
    for (int64_t t = 0; t < batch.tokens(); ++t) tokens.positions.push_back(t);
    layers::route_tokens(*layer_.moe(), weights_.vectors, workspace_, tokens);
    return tokens;
  }
  layers::ExpertContext expert_context() { return {forward_.operand, &nothing_, &workspace_, self_.get(), 0}; }
  layers::ExpertChunkView all_experts() const {
    return {{0, layer_.moe()->router.experts}, [this](int e) { return experts_[static_cast<size_t>(e)]; }};
  }

  layers::ExpertWeights expert(int e) const {
    const layers::ExpertLinears& linears = layer_.moe()->experts[static_cast<size_t>(e)];
    layers::ExpertWeights weights;
    for (const int index : {linears.gate, linears.up, linears.gate_up, linears.down}) {
      if (index < 0) continue;
      const layers::LinearSpec& linear = layer_.linears[static_cast<size_t>(index)];
      layers::LinearWeights& mine = weights.of(linears, index);
      mine.weight = tensors_.at(linear.tensor(".weight"));
      if (linear.has_bias) mine.bias = tensors_.at(linear.tensor(".bias"));
      if (!linear.is_stacked()) continue;
      const Tensor stored = mine.weight.rows(e, e + 1).reshaped({linear.in, linear.out});
      mine.weight = Tensor::empty({linear.out, linear.in}, stored.dtype());
      kernels::transpose(stored, mine.weight);
      if (linear.has_bias) mine.bias = mine.bias.rows(e, e + 1).reshaped({linear.out});
    }
    return weights;
  }

  const layers::LayerSpec& layer_;
  const std::map<std::string, Tensor>& tensors_;
  layers::LayerHooks nothing_;
  layers::Workspace workspace_;
  std::unique_ptr<parallel::Communicator> self_ = parallel::make_self_communicator();
  layers::LayerWeights weights_;
  layers::LayerColumns columns_;
  layers::ForwardContext forward_;
  std::vector<layers::ExpertWeights> experts_;
};

}  // namespace ptq::test
