#pragma once
// One decoder layer backwards: from its input, which a forward pass kept, everything inside is computed again, then the gradient of a loss
// by its output becomes the gradient by its input. Only activations have gradients. On the way the hooks see what every linear read, made
// and how the loss depends on what it made. Split as the forward pass is: a rank has the output rows of its slice, and of the gradient by
// a linear's input it computes whole columns, all-gathered: dX = dY·W sums over all output rows on one rank, so the bits do not depend
// on the number of tensor ranks.

#include "layers/layer.h"
#include "layers/moe.h"

namespace ptq::layers {

/// What sees gradients. The default does nothing.
class GradientHooks {
 public:
  virtual ~GradientHooks() = default;
  /// x [T, C] is what `linear` read (bf16 | f32, whole rows), y [T, O of this rank's slice] f32 what it made of it, bias included, dy the
  /// gradient by y. A kv head that tensor ranks share is shown on all of them.
  virtual void linear_gradient(const LayerSpec&, int /*linear*/, const Tensor& /*x*/, const Tensor& /*y*/, const Tensor& /*dy*/,
                               const Batch&) {}
  /// The same of a routed expert's linear, over the tokens that visit it: x [n, C], y, dy [n, O].
  virtual void expert_gradient(const LayerSpec&, int /*expert*/, int /*linear*/, const Tensor& /*x*/, const Tensor& /*y*/,
                               const Tensor& /*dy*/, const ExpertVisits&) {}
  /// k, v [T, kv heads of this rank · head_dim] f32 as LayerHooks::key_value shows them, dk, dv the gradients by them. A kv head that
  /// tensor ranks share is shown on all of them.
  virtual void key_value_gradient(const LayerSpec&, const Tensor& /*k*/, const Tensor& /*v*/, const Tensor& /*dk*/, const Tensor& /*dv*/) {}
};

/// By linear, the columns of its weight that this rank multiplies gradients by: [C of this rank, O] in the weight's dtype; undefined for
/// those of routed experts. The columns of tensor rank r are even_share(C, ranks, r).
using LayerColumns = std::vector<Tensor>;
/// Exchanges the row slices for columns. Allocates them, and twice one linear while it is exchanged. Collective over the tensor group.
LayerColumns weight_columns(const LayerSpec& layer, const LayerWeights& weights, parallel::Communicator& tensor);

struct BackwardContext {
  ForwardContext forward;  ///< its hooks change nothing; they see the forward pass again
  const LayerColumns* columns = nullptr;
  GradientHooks* hooks = nullptr;
};

/// What the routed experts gave back for one micro-batch, whole on every tensor rank.
struct RoutedGradient {
  Tensor x;                        ///< [T, H] f32: the gradient by the experts' input x, through the experts alone
  Tensor weights;                  ///< [T, K] f32: by the router's weights
  Tensor experts, router_weights;  ///< [T, K] i32 and f32, as route_tokens gave them
};

/// gradient [T, H] f32: by the layer's output, becomes that by its input. hidden [T, H] f32: the layer's input; unchanged. `routed` for
/// layers with routed experts, else nullptr. Collective over the tensor group.
void backward_layer(const LayerSpec& layer, const LayerWeights& weights, const Batch& batch, const BackwardContext& context,
                    const Tensor& hidden, const RoutedGradient* routed, Tensor& gradient);

/// The tokens of one rank whose gradients go back through the experts together.
struct GradientGroup {
  TokenGroup tokens;       ///< x, positions, experts, weights; `hidden` is not used
  Tensor gradient;         ///< [T, H] f32: by the layer's output
  Tensor x_gradient;       ///< [T, H] f32: += by x
  Tensor weight_gradient;  ///< [T, K] f32: set by the router's weights
};

/// Takes every visit of the chunk's experts back: x_gradient[t] += ∂/∂x of the token's experts in ascending order, and its weight_gradient
/// of these experts is set. The experts' forward pass is computed again; context.hooks, which must change nothing, see it. The gradient
/// hooks see up to 1024 visits at a time, on the expert's rank. Collective over the expert group, as forward_experts: a rank without tokens
/// passes tensors of [0, ...].
void backward_experts(const LayerSpec& layer, const ExpertChunkView& chunk, const ExpertContext& context, GradientHooks& hooks,
                      GradientGroup& group);

}  // namespace ptq::layers
