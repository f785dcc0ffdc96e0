// Mixtures of experts in Megatron's layout: the router, routed experts stacked in a dimension of their own or numbered, shared experts.

#include <optional>

#include "kernels/core/error.h"
#include "runner/megatron_map.h"

namespace ptq::runner {

namespace {

/// Array `part` ("linear_fc1", "weight") of one routed expert, under any of the names that the implementations of experts give it.
std::optional<SourceArray> find_expert(MegatronMap& map, const LayerNames& names, const std::string& linear, const std::string& part,
                                       int64_t expert, int64_t experts) {
  const std::string number = std::to_string(expert);
  if (const auto all = map.arrays().find(names, "mlp.experts.experts." + linear + "." + part)) {
    if (all->shape.empty() || all->shape[0] != experts)
      throw data_error("array " + all->array->name + " has the shape " + to_string(all->array->shape) +
                           ", but config.json says that a layer has " + std::to_string(experts) + " experts",
                       map.arrays().store().path(), "config.json and checkpoint must be of the same model");
    return all->at(expert);
  }
  for (const std::string& name : {"experts." + number + "." + linear + "." + part, "local_experts." + number + "." + linear + "." + part,
                                  linear + "." + part + number})
    if (const auto own = map.arrays().find(names, "mlp.experts." + name)) return own;
  return std::nullopt;
}

SourceArray need_expert(MegatronMap& map, const LayerNames& names, const std::string& linear, int64_t expert, int64_t experts,
                        const std::string& tensor) {
  const auto found = find_expert(map, names, linear, "weight", expert, experts);
  return found ? *found : map.any_of(names, {"mlp.experts.experts." + linear + ".weight"}, tensor);
}

}  // namespace

void map_experts(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer, const layers::MoeSpec& moe) {
  const int64_t experts = moe.router.experts;
  const std::string router = moe.router.module + ".weight";
  map.add(router, map.any_of(names, {"mlp.router.weight"}, router), shape_of(layer, router));
  if (moe.router.has_bias)
    map.add(moe.router.module + ".bias", map.any_of(names, {"mlp.router.bias"}, moe.router.module + ".bias"), {experts});
  if (!moe.router.correction.empty())
    map.add(moe.router.correction, map.any_of(names, {"mlp.router.expert_bias"}, moe.router.correction), {experts});
  for (int64_t e = 0; e < experts; ++e) {
    const layers::ExpertLinears& linears = moe.experts[static_cast<size_t>(e)];
    const auto linear = [&](int index) -> const layers::LinearSpec& { return layer.linears[static_cast<size_t>(index)]; };
    if (linears.gate < 0 || linear(linears.gate).is_stacked() || linear(linears.gate).has_bias)
      throw user_error("experts of the kind that " + moe.module + " has cannot be read from a Megatron checkpoint",
                       map.arrays().store().path(), "convert the checkpoint to Hugging Face's format first");
    const layers::LinearSpec &gate = linear(linears.gate), &up = linear(linears.up), &down = linear(linears.down);
    const std::string gate_name = gate.tensor(".weight"), up_name = up.tensor(".weight"), down_name = down.tensor(".weight");
    if (const auto half = find_expert(map, names, "linear_fc1", "weight_w", e, experts)) {
      map.add(gate_name, *half, {gate.out, gate.in});
      const auto other = find_expert(map, names, "linear_fc1", "weight_v", e, experts);
      map.add(up_name, other ? *other : map.any_of(names, {"mlp.experts.experts.linear_fc1.weight_v"}, up_name), {up.out, up.in});
    } else {
      const SourceArray both = need_expert(map, names, "linear_fc1", e, experts, gate_name);
      map.check_shape(both, {gate.out + up.out, gate.in}, gate_name);
      map.add_rows(gate_name, both, {{0, gate.out}});
      map.add_rows(up_name, both, {{gate.out, up.out}});
    }
    map.add(down_name, need_expert(map, names, "linear_fc2", e, experts, down_name), {down.out, down.in});
  }
  if (moe.shared) map_mlp(map, names, layer, *moe.shared, "mlp.shared_experts");
}

}  // namespace ptq::runner
