#pragma once
// What the way back through one block of a layer needs: gradients of linears, by their slices or whole. Columns of a rank are those of
// even_share(C, ranks, rank), which for what o and down read are the rank's own heads and rows: there nothing is exchanged.

#include <string>

#include "layers/backward.h"
#include "layers/block.h"

namespace ptq::layers {

struct BlockGradient {
  const Block& block;  ///< after its forward pass, with its trace
  const BackwardContext& context;

  const Trace& trace() const { return *block.trace; }
  const std::map<std::string, Tensor>& vectors() const { return block.weights.vectors; }
  /// [T, width] f32, of a name that the forward pass does not use.
  Tensor buffer(const std::string& name, int64_t width) const;
  /// From dy [T, O of this rank] f32, the gradient by what `linear` made, that by what it read: dy·W, [T, C of this rank] f32 in the buffer
  /// `name`. Shows dy to the hooks. Collective over the tensor group.
  Tensor from_slice(int linear, const Tensor& dy, const std::string& name) const;
  /// The same from dy [T, O], whole on every rank. Communicates nothing.
  Tensor from_whole(int linear, const Tensor& dy, const std::string& name) const;
  /// The columns of all ranks side by side, [T, width]. Collective over the tensor group.
  Tensor gather(const Tensor& columns, int64_t width, const std::string& name) const;

 private:
  void show(int linear, const Tensor& dy) const;
  Tensor as_operand(const Tensor& dy, const std::string& name) const;
  Tensor columns_product(int linear, const Tensor& dy, const std::string& name) const;
};

/// Each takes dy [T, H] f32, the gradient by the body's output, whole on every tensor rank, and returns that by the body's input: this
/// rank's columns of it, [T, H of this rank] f32. Collective over the tensor group.
Tensor attention_backward(const BlockGradient& back, const AttentionSpec& spec, const Tensor& dy);
Tensor latent_attention_backward(const BlockGradient& back, const LatentAttentionSpec& spec, const Tensor& dy);
Tensor mlp_backward(const BlockGradient& back, const MlpSpec& spec, const Tensor& dy);
/// The same of a mixture, whole: through the shared expert, the router and the routed experts, added in this order.
Tensor mixture_backward(const BlockGradient& back, const MoeSpec& spec, const RoutedGradient& routed, const Tensor& dy);

/// Of apply_norm: x [T, H] f32 is what the norm read; dx [T, H] f32 is overwritten and may be dy.
void norm_backward(const NormSpec& norm, const std::map<std::string, Tensor>& vectors, const Tensor& x, const Tensor& dy, Tensor& dx);

}  // namespace ptq::layers
