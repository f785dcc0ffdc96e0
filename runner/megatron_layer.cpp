// A layer in Megatron's layout: the norms of its blocks under any of their names, and plain MLPs.

#include <variant>

#include "kernels/core/error.h"
#include "runner/megatron_map.h"

namespace ptq::runner {

const Shape& shape_of(const layers::LayerSpec& layer, const std::string& tensor) {
  for (const layers::TensorSpec& spec : layer.tensors)
    if (spec.name == tensor) return spec.shape;
  throw bug("a layer without its tensor " + tensor);
}

namespace {

/// Transformer Engine keeps a norm with the linear that reads it; others give it a name of its own, and some of them the same name.
void map_block_norm(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer, const layers::NormSpec& norm,
                    const std::string& fused, const std::string& own) {
  const auto add = [&](const char* part) {
    const std::string tensor = norm.module + "." + part;
    map.add(tensor, map.any_of(names, {fused + ".layer_norm_" + part, own + "." + part}, tensor), shape_of(layer, tensor), true);
  };
  add("weight");
  if (norm.kind == layers::NormSpec::Kind::kLayerNorm1p) add("bias");
}

}  // namespace

void map_linear(MegatronMap& map, const LayerNames& names, const layers::LinearSpec& linear, const std::string& name) {
  const auto add = [&](const std::string& part, const Shape& shape) {
    map.add(linear.tensor(part), map.any_of(names, {name + part}, linear.tensor(part)), shape);
  };
  add(".weight", {linear.out, linear.in});
  if (linear.has_bias) add(".bias", {linear.out});
}

void map_mlp(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer, const layers::MlpSpec& mlp,
             const std::string& name) {
  const auto linear = [&](int index) -> const layers::LinearSpec& { return layer.linears[static_cast<size_t>(index)]; };
  const layers::LinearSpec& up = linear(mlp.up);
  const std::string fc1 = name + ".linear_fc1";
  map_linear(map, names, linear(mlp.down), name + ".linear_fc2");
  if (mlp.gate < 0) {
    map_linear(map, names, up, fc1);
    return;
  }
  const layers::LinearSpec& gate = linear(mlp.gate);
  const auto split = [&](const std::string& part) {
    const std::string gate_name = gate.tensor(part), up_name = up.tensor(part);
    const auto shape = [&](int64_t rows) { return part == ".bias" ? Shape{rows} : Shape{rows, gate.in}; };
    if (const auto half = map.arrays().find(names, fc1 + part + "_w")) {
      map.add(gate_name, *half, shape(gate.out));
      map.add(up_name, map.any_of(names, {fc1 + part + "_v"}, up_name), shape(up.out));
      return;
    }
    const SourceArray both = map.any_of(names, {fc1 + part}, gate_name);
    map.check_shape(both, shape(gate.out + up.out), gate_name);
    map.add_rows(gate_name, both, {{0, gate.out}});
    map.add_rows(up_name, both, {{gate.out, up.out}});
  };
  split(".weight");
  if (gate.has_bias) split(".bias");
}

void map_layer(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer) {
  for (const layers::BlockSpec& block : layer.blocks) {
    const auto* attention = std::get_if<layers::AttentionSpec>(&block.body);
    const auto* latent = std::get_if<layers::LatentAttentionSpec>(&block.body);
    if (attention || latent)
      map_block_norm(map, names, layer, block.norm, attention ? "self_attention.linear_qkv" : "self_attention.linear_q_proj",
                     "input_layernorm");
    else
      map_block_norm(map, names, layer, block.norm, "mlp.linear_fc1", "pre_mlp_layernorm");
    if (attention)
      map_attention(map, names, layer, *attention);
    else if (latent)
      map_latent_attention(map, names, layer, *latent);
    else if (const auto* moe = std::get_if<layers::MoeSpec>(&block.body))
      map_experts(map, names, layer, *moe);
    else if (const auto* mlp = std::get_if<layers::MlpSpec>(&block.body))
      map_mlp(map, names, layer, *mlp, "mlp");
    else
      throw user_error("layers like " + layer.prefix + " cannot be read from a Megatron checkpoint", map.arrays().store().path(),
                       "convert the checkpoint to Hugging Face's format first");
  }
}

}  // namespace ptq::runner
