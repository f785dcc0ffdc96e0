#include "layers/layer.h"

#include <algorithm>

#include "kernels/ops.h"
#include "layers/column_gather.h"
#include "layers/tensor_slices.h"

namespace ptq::layers {

int64_t Batch::row_of(int64_t token) const {
  const auto after = std::upper_bound(starts.begin(), starts.end(), token);
  return first_row + (after - starts.begin()) - 1;
}

Batch make_batch(int64_t first_row, const std::vector<int64_t>& lengths) {
  Batch batch;
  batch.first_row = first_row;
  batch.starts.push_back(0);
  for (const int64_t length : lengths) batch.starts.push_back(batch.starts.back() + length);
  batch.positions = Tensor::empty({batch.tokens()}, DType::kI32);
  auto* position = batch.positions.data<int32_t>();
  for (const int64_t length : lengths)
    for (int64_t i = 0; i < length; ++i) *position++ = static_cast<int32_t>(i);
  return batch;
}

Tensor Workspace::get(const std::string& name, Shape shape, DType dtype) {
  Tensor& buffer = buffers_[name];
  const int64_t bytes = element_count(shape) * dtype_bytes(dtype);
  if (!buffer.defined() || buffer.bytes() < bytes) {
    buffer = Tensor();  // free first: the peak must not hold both
    buffer = Tensor::empty({bytes}, DType::kU8);
  }
  return buffer.as(std::move(shape), dtype);
}

void apply_norm(const NormSpec& norm, const std::map<std::string, Tensor>& vectors, const Tensor& x, Tensor& out) {
  const Tensor& weight = vectors.at(norm.module + ".weight");
  if (norm.kind == NormSpec::Kind::kRms)
    kernels::rms_norm(x, weight, norm.eps, out);
  else
    kernels::layer_norm_1p(x, weight, vectors.at(norm.module + ".bias"), norm.eps, out);
}

namespace {

/// The pieces every block of one layer needs, bundled for one micro-batch.
struct Block {
  const LayerSpec& layer;
  const LayerWeights& weights;
  const Batch& batch;
  const ForwardContext& context;

  Workspace& scratch() const { return *context.workspace; }

  /// This rank's slice of linear(x), [T, O of this rank] f32.
  Tensor product(int linear, const Tensor& x, const std::string& name) const {
    const LinearWeights& w = weights.linears[static_cast<size_t>(linear)];
    const Tensor input = context.hooks->quantized_input(layer, linear, x);
    Tensor y = scratch().get(name, {batch.tokens(), w.weight.dim(0)}, DType::kF32);
    kernels::matmul(input, w.weight, w.bias, y);
    return y;
  }

  /// The slices of `local` that all tensor ranks hold of linear's output, side by side.
  Tensor gather(int linear, const Tensor& local, const std::string& name) const {
    const LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
    std::vector<int64_t> widths;
    for (int64_t r = 0; r < context.tensor->size(); ++r)
      widths.push_back(tensor_slice(spec, layer.attention(), context.tensor->size(), r).size());
    return gather_columns(*context.tensor, local, widths, name, scratch());
  }

  void observe(int linear, const Tensor& x) const {
    context.hooks->linear_input(layer, layer.linears[static_cast<size_t>(linear)].input_group, x, batch);
  }

  Tensor attention(const AttentionSpec& spec, const Tensor& x) const {
    observe(spec.q, x);
    Tensor q = product(spec.q, x, "q"), k = product(spec.k, x, "k"), v = product(spec.v, x, "v");
    if (!spec.q_norm.empty()) {
      const auto eps = layer.blocks.front().norm.eps;
      kernels::head_rms_norm(q, weights.vectors.at(spec.q_norm + ".weight"), spec.head_dim, eps);
      kernels::head_rms_norm(k, weights.vectors.at(spec.k_norm + ".weight"), spec.head_dim, eps);
    }
    kernels::rope_half(q, spec.head_dim, context.rotary_dim, batch.positions, context.rope->cos, context.rope->sin);
    kernels::rope_half(k, spec.head_dim, context.rotary_dim, batch.positions, context.rope->cos, context.rope->sin);
    context.hooks->key_value(layer, k, v, batch);
    Tensor local = scratch().get("attention", {batch.tokens(), q.dim(1)}, context.operand);
    kernels::causal_attention(q, k, v, batch.starts,
                              {.heads = q.dim(1) / spec.head_dim,
                               .kv_heads = k.dim(1) / spec.head_dim,
                               .head_dim = spec.head_dim,
                               .v_head_dim = spec.head_dim,
                               .scale = spec.scale,
                               .window = spec.window},
                              local);
    const Tensor whole = gather(spec.q, local, "attention");
    observe(spec.o, whole);
    return gather(spec.o, product(spec.o, whole, "block"), "block");
  }

  Tensor mlp(const MlpSpec& spec, const Tensor& x) const {
    observe(spec.up, x);
    Tensor up = product(spec.up, x, "up");
    Tensor local = scratch().get("activated", up.shape(), context.operand);
    if (spec.kind == MlpSpec::Kind::kSiluGated)
      kernels::silu_mul(product(spec.gate, x, "gate"), up, local);
    else
      kernels::relu_squared(up, local);
    const Tensor whole = gather(spec.up, local, "activated");
    observe(spec.down, whole);
    return gather(spec.down, product(spec.down, whole, "block"), "block");
  }

  Tensor single(const SingleLinearSpec& spec, const Tensor& x) const {
    observe(spec.linear, x);
    return gather(spec.linear, product(spec.linear, x, "block"), "block");
  }
};

}  // namespace

void forward_layer(const LayerSpec& layer, const LayerWeights& weights, const Batch& batch, const ForwardContext& context, Tensor& hidden) {
  const Block block{layer, weights, batch, context};
  for (const BlockSpec& spec : layer.blocks) {
    Tensor x = context.workspace->get("norm", hidden.shape(), context.operand);
    apply_norm(spec.norm, weights.vectors, hidden, x);
    const Tensor y = std::visit(
        [&](const auto& body) {
          using Body = std::decay_t<decltype(body)>;
          if constexpr (std::is_same_v<Body, AttentionSpec>)
            return block.attention(body, x);
          else if constexpr (std::is_same_v<Body, MlpSpec>)
            return block.mlp(body, x);
          else
            return block.single(body, x);
        },
        spec.body);
    kernels::add_in_place(hidden, y);
  }
}

}  // namespace ptq::layers
