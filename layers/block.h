#pragma once
// What every block of a layer needs while one micro-batch goes through it: products of this rank's rows, and slices put together.

#include <map>
#include <string>

#include "layers/layer.h"

namespace ptq::layers {

/// What the forward pass of one block leaves for its way back, in buffers of the workspace.
struct Trace {
  struct Product {
    Tensor x, y;  ///< [T, C] whole, as the linear read it; [T, O of this rank] f32, bias included
  };
  struct Attended {
    Tensor q, k, v, sinks;  ///< what the softmax read, of the heads of this rank
    kernels::AttentionShape shape;
  };
  Tensor x;                         ///< [T, H]: the norm's output
  std::map<int, Product> products;  ///< by linear

  Attended attended;
  Tensor q_turned, k_turned;  ///< attention: what l2_norm read
  Tensor temperatures;        ///< attention: [T] factors on q; undefined without
  Tensor q_latent, latent;    ///< latent attention: what q_norm and kv_norm read, whole
};

struct Block {
  const LayerSpec& layer;
  const LayerWeights& weights;
  const Batch& batch;
  const ForwardContext& context;
  Trace* trace = nullptr;  ///< filled where the block goes back afterwards
  std::string prefix;      ///< of its buffers' names: blocks whose traces live together have different ones

  Workspace& scratch() const { return *context.workspace; }
  Tensor buffer(const std::string& name, Shape shape, DType dtype) const { return scratch().get(prefix + name, std::move(shape), dtype); }
  /// x, which is about to be changed in place; a copy in the buffer `name` where a trace keeps x.
  Tensor changeable(const Tensor& x, const std::string& name) const;
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
/// The same of any body; of a mixture the shared expert's part, undefined without one.
Tensor forward_block(const Block& block, const BlockSpec& spec, const Tensor& x);

/// What turns the heads of q and k, and the rotated part of latent attention's heads from dim `offset` on.
kernels::RopeShape rope_shape(const AttentionSpec& spec, const ForwardContext& context);
kernels::RopeShape rope_shape(const LatentAttentionSpec& spec, int64_t head_dim, int64_t offset);

}  // namespace ptq::layers
