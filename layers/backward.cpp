#include "layers/backward.h"

#include "kernels/backward_ops.h"
#include "kernels/ops.h"
#include "layers/backward_block.h"
#include "layers/column_gather.h"
#include "layers/tensor_slices.h"

namespace ptq::layers {

Tensor BlockGradient::buffer(const std::string& name, int64_t width) const {
  return block.scratch().get("back." + name, {block.batch.tokens(), width}, DType::kF32);
}

void BlockGradient::show(int linear, const Tensor& dy) const {
  const Trace::Product& product = trace().products.at(linear);
  context.hooks->linear_gradient(block.layer, linear, product.x, product.y, dy, block.batch);
}

Tensor BlockGradient::as_operand(const Tensor& dy, const std::string& name) const {
  if (dy.dtype() == block.context.operand) return dy;
  Tensor operand = block.scratch().get("back." + name + ".operand", dy.shape(), block.context.operand);
  kernels::convert(dy, operand);
  return operand;
}

Tensor BlockGradient::columns_product(int linear, const Tensor& dy, const std::string& name) const {
  const Tensor& columns = (*context.columns)[static_cast<size_t>(linear)];
  Tensor dx = buffer(name, columns.dim(0));
  kernels::matmul(dy, columns, Tensor(), dx);
  return dx;
}

Tensor BlockGradient::from_slice(int linear, const Tensor& dy, const std::string& name) const {
  show(linear, dy);
  parallel::Communicator& tensor = *block.context.tensor;
  const LinearSpec& spec = block.layer.linears[static_cast<size_t>(linear)];
  std::vector<int64_t> widths;
  for (int r = 0; r < tensor.size(); ++r) widths.push_back(distinct_slice(spec, block.layer.attention(), tensor.size(), r).size());
  const Tensor local = as_operand(dy, name);
  const int64_t width = widths[static_cast<size_t>(tensor.rank())];
  const Tensor given = width == local.dim(1) ? local : local.as({local.dim(0), width}, local.dtype());
  return columns_product(linear, gather_columns(tensor, given, widths, "back." + name + ".dy", block.scratch()), name);
}

Tensor BlockGradient::from_whole(int linear, const Tensor& dy, const std::string& name) const {
  const parallel::Communicator& tensor = *block.context.tensor;
  const LinearSpec& spec = block.layer.linears[static_cast<size_t>(linear)];
  const parallel::Range mine = tensor_slice(spec, block.layer.attention(), tensor.size(), tensor.rank());
  Tensor slice = dy;
  if (mine.size() != dy.dim(1)) {
    slice = buffer(name + ".slice", mine.size());
    kernels::slice_columns(dy, mine.begin, slice);
  }
  show(linear, slice);
  return columns_product(linear, as_operand(dy, name), name);
}

Tensor BlockGradient::gather(const Tensor& columns, int64_t width, const std::string& name) const {
  parallel::Communicator& tensor = *block.context.tensor;
  std::vector<int64_t> widths;
  for (int r = 0; r < tensor.size(); ++r) widths.push_back(parallel::even_share(width, tensor.size(), r).size());
  return gather_columns(tensor, columns, widths, "back." + name, block.scratch());
}

void norm_backward(const NormSpec& norm, const std::map<std::string, Tensor>& vectors, const Tensor& x, const Tensor& dy, Tensor& dx) {
  const Tensor& weight = vectors.at(norm.module + ".weight");
  if (norm.kind == NormSpec::Kind::kRms)
    kernels::rms_norm_backward(x, weight, norm.eps, dy, dx);
  else
    kernels::layer_norm_1p_backward(x, weight, norm.eps, dy, dx);
}

Tensor mlp_backward(const BlockGradient& back, const MlpSpec& spec, const Tensor& dy) {
  const Tensor inner = back.from_whole(spec.down, dy, "inner");
  const Tensor& up = back.trace().products.at(spec.up).y;
  Tensor by_up = back.buffer("up", up.dim(1));
  if (spec.kind == MlpSpec::Kind::kReluSquared) {
    kernels::relu_squared_backward(up, inner, by_up);
    return back.from_slice(spec.up, by_up, "read");
  }
  Tensor by_gate = back.buffer("gate", up.dim(1));
  kernels::silu_mul_backward(back.trace().products.at(spec.gate).y, up, inner, by_gate, by_up);
  Tensor read = back.from_slice(spec.gate, by_gate, "read");
  kernels::add_in_place(read, back.from_slice(spec.up, by_up, "read_more"));
  return read;
}

void backward_layer(const LayerSpec& layer, const LayerWeights& weights, const Batch& batch, const BackwardContext& context,
                    const Tensor& hidden, const RoutedGradient* routed, Tensor& gradient) {
  require((layer.moe() != nullptr) == (routed != nullptr),
          "backward_layer: a layer with routed experts and no gradient of theirs, or one without");
  std::vector<Trace> traces(layer.blocks.size());
  std::vector<Block> blocks;
  std::vector<Tensor> inputs{hidden};  // hidden states before every block
  for (size_t i = 0; i < layer.blocks.size(); ++i) {
    blocks.push_back({layer, weights, batch, context.forward, &traces[i], "block" + std::to_string(i) + "."});
    const Block& block = blocks.back();
    traces[i].x = block.buffer("norm", hidden.shape(), context.forward.operand);
    apply_norm(layer.blocks[i].norm, weights.vectors, inputs[i], traces[i].x);
    const Tensor y = forward_block(block, layer.blocks[i], traces[i].x);
    if (i + 1 == layer.blocks.size()) break;
    Tensor output = block.buffer("output", hidden.shape(), DType::kF32);
    kernels::convert(inputs[i], output);
    if (y.defined()) kernels::add_in_place(output, y);
    inputs.push_back(output);
  }
  for (size_t i = layer.blocks.size(); i-- > 0;) {
    const BlockGradient back{blocks[i], context};
    const BlockSpec& spec = layer.blocks[i];
    const auto whole = [&](const Tensor& columns) { return back.gather(columns, gradient.dim(1), "input"); };
    Tensor by_input = std::visit(
        [&](const auto& body) -> Tensor {
          using Body = std::decay_t<decltype(body)>;
          if constexpr (std::is_same_v<Body, AttentionSpec>) {
            return whole(attention_backward(back, body, gradient));
          } else if constexpr (std::is_same_v<Body, LatentAttentionSpec>) {
            return whole(latent_attention_backward(back, body, gradient));
          } else if constexpr (std::is_same_v<Body, MlpSpec>) {
            return whole(mlp_backward(back, body, gradient));
          } else if constexpr (std::is_same_v<Body, MoeSpec>) {
            require(routed != nullptr, "a layer with routed experts goes back with what they gave back");
            return mixture_backward(back, body, *routed, gradient);
          } else {
            return whole(back.from_whole(body.linear, gradient, "read"));
          }
        },
        spec.body);
    norm_backward(spec.norm, weights.vectors, inputs[i], by_input, by_input);
    kernels::add_in_place(gradient, by_input);
  }
}

}  // namespace ptq::layers
