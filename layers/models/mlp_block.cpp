#include "layers/models/mlp_block.h"

#include <algorithm>

namespace ptq::layers {

MlpSpec add_mlp_linears(LayerSpec& layer, const MlpShape& shape, int64_t hidden, int input_group) {
  const std::string module = layer.prefix + "." + shape.module;
  const FreeGroups free = free_groups(layer);
  const int down_input = std::max(free.input, input_group + 1);
  MlpSpec mlp;
  mlp.kind = shape.kind;
  if (shape.kind == MlpSpec::Kind::kSiluGated)
    mlp.gate = add_linear(layer, {module + ".gate_proj", shape.intermediate, hidden, shape.bias, Split::kRows, input_group, free.scale});
  mlp.up = add_linear(layer, {module + ".up_proj", shape.intermediate, hidden, shape.bias, Split::kRows, input_group, free.scale});
  mlp.down = add_linear(layer, {module + ".down_proj", hidden, shape.intermediate, shape.bias, Split::kRows, down_input, free.scale + 1});
  return mlp;
}

void add_mlp(LayerSpec& layer, const ModelSpec& model, const MlpShape& shape) {
  BlockSpec block{add_block_norm(layer, model, "post_attention_layernorm"), {}};
  block.body = add_mlp_linears(layer, shape, model.hidden, free_groups(layer).input);
  layer.blocks.push_back(std::move(block));
}

}  // namespace ptq::layers
