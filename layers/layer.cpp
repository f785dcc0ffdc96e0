#include "layers/layer.h"

#include <algorithm>

#include "kernels/ops.h"
#include "layers/block.h"
#include "layers/column_gather.h"
#include "layers/tensor_slices.h"

namespace ptq::layers {

int64_t Batch::row_of(int64_t token) const {
  const auto after = std::upper_bound(starts.begin(), starts.end(), token);
  return first_row + ((after - starts.begin()) - 1) * row_step;
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

int64_t Workspace::bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, buffer] : buffers_) bytes += buffer.bytes();
  return bytes;
}

void apply_norm(const NormSpec& norm, const std::map<std::string, Tensor>& vectors, const Tensor& x, Tensor& out) {
  const Tensor& weight = vectors.at(norm.module + ".weight");
  if (norm.kind == NormSpec::Kind::kRms)
    kernels::rms_norm(x, weight, norm.eps, out);
  else
    kernels::layer_norm_1p(x, weight, vectors.at(norm.module + ".bias"), norm.eps, out);
}

Tensor Block::changeable(const Tensor& x, const std::string& name) const {
  if (!trace) return x;
  Tensor copy = buffer(name, x.shape(), x.dtype());
  kernels::convert(x, copy);
  return copy;
}

void Block::observe(int linear, const Tensor& x) const {
  context.hooks->linear_input(layer, layer.linears[static_cast<size_t>(linear)].input_group, x, batch);
}

Tensor Block::product(int linear, const Tensor& x, const std::string& name) const {
  const LinearWeights& w = weights.linears[static_cast<size_t>(linear)];
  const Tensor input = context.hooks->quantized_input(layer, linear, x);
  Tensor y = buffer(name, {batch.tokens(), w.weight.dim(0)}, DType::kF32);
  kernels::matmul(input, w.weight, w.bias, y);
  if (trace) trace->products[linear] = {input, y};
  return y;
}

Tensor Block::gather(int linear, const Tensor& local, const std::string& name) const {
  const LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
  std::vector<int64_t> widths;
  for (int64_t r = 0; r < context.tensor->size(); ++r)
    widths.push_back(tensor_slice(spec, layer.attention(), context.tensor->size(), r).size());
  return gather_columns(*context.tensor, local, widths, prefix + name, scratch());
}

Tensor mlp(const Block& block, const MlpSpec& spec, const Tensor& x) {
  block.observe(spec.up, x);
  Tensor up = block.product(spec.up, x, "up");
  Tensor local = block.buffer("activated", up.shape(), block.context.operand);
  if (spec.kind == MlpSpec::Kind::kSiluGated)
    kernels::silu_mul(block.product(spec.gate, x, "gate"), up, local);
  else
    kernels::relu_squared(up, local);
  const Tensor whole = block.gather(spec.up, local, "activated");
  block.observe(spec.down, whole);
  return block.whole_product(spec.down, whole, "block");
}

Tensor forward_block(const Block& block, const BlockSpec& spec, const Tensor& x) {
  return std::visit(
      [&](const auto& body) -> Tensor {
        using Body = std::decay_t<decltype(body)>;
        if constexpr (std::is_same_v<Body, AttentionSpec>) {
          return attention(block, body, x);
        } else if constexpr (std::is_same_v<Body, LatentAttentionSpec>) {
          return latent_attention(block, body, x);
        } else if constexpr (std::is_same_v<Body, MlpSpec>) {
          return mlp(block, body, x);
        } else if constexpr (std::is_same_v<Body, MoeSpec>) {
          if (body.shared) return mlp(block, *body.shared, x);
          block.context.hooks->linear_input(block.layer, body.input_group, x, block.batch);
          return Tensor();
        } else {
          block.observe(body.linear, x);
          return block.whole_product(body.linear, x, "block");
        }
      },
      spec.body);
}

Tensor forward_layer(const LayerSpec& layer, const LayerWeights& weights, const Batch& batch, const ForwardContext& context,
                     Tensor& hidden) {
  const Block block{layer, weights, batch, context};
  Tensor routed;
  for (const BlockSpec& spec : layer.blocks) {
    Tensor x = block.buffer("norm", hidden.shape(), context.operand);
    apply_norm(spec.norm, weights.vectors, hidden, x);
    if (std::holds_alternative<MoeSpec>(spec.body)) routed = x;
    const Tensor y = forward_block(block, spec, x);
    if (y.defined()) kernels::add_in_place(hidden, y);
  }
  return routed;
}

}  // namespace ptq::layers
