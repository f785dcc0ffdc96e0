#pragma once
// What every block of a layer needs while one micro-batch goes through it: products of this rank's rows, and slices put together.

#include <string>

#include "layers/layer.h"

namespace ptq::layers {

struct Block {
  const LayerSpec& layer;
  const LayerWeights& weights;
  const Batch& batch;
  const ForwardContext& context;

  Workspace& scratch() const { return *context.workspace; }
  /// Tells the hooks what the linears of this one's input group read.
  void observe(int linear, const Tensor& x) const;
  /// This rank's slice of linear(x), [T, O of this rank] f32, in the buffer `name`.
  Tensor product(int linear, const Tensor& x, const std::string& name) const;
  /// The slices of `local` that all tensor ranks hold of linear's output, side by side. Collective over the tensor group.
  Tensor gather(int linear, const Tensor& local, const std::string& name) const;
  /// The whole of linear(x) on every rank.
  Tensor whole_product(int linear, const Tensor& x, const std::string& name) const {
    return gather(linear, product(linear, x, name), name);
  }
};

/// Each returns body(x), [T, H] f32, whole on every tensor rank; x [T, H] is the norm's output. Collective over the tensor group.
Tensor attention(const Block& block, const AttentionSpec& spec, const Tensor& x);
Tensor latent_attention(const Block& block, const LatentAttentionSpec& spec, const Tensor& x);
Tensor mlp(const Block& block, const MlpSpec& spec, const Tensor& x);

}  // namespace ptq::layers
