#include "layers/models/moe_block.h"

#include "layers/models/mlp_block.h"

namespace ptq::layers {

namespace {

void add_router(LayerSpec& layer, RouterSpec& router, const std::string& module, int64_t hidden) {
  router.module = layer.prefix + "." + module;
  layer.tensors.push_back({router.module + ".weight", {router.experts, hidden}, Split::kWhole});
  if (router.has_bias) layer.tensors.push_back({router.module + ".bias", {router.experts}, Split::kWhole});
  if (router.kind != RouterSpec::Kind::kGroupedSigmoid) return;
  router.correction = router.module + ".e_score_correction_bias";
  layer.tensors.push_back({router.correction, {router.experts}, Split::kWhole});
}

/// One linear of routed experts, whole on the rank that has its expert.
LinearSpec routed(const std::string& module, int64_t out, int64_t in, bool bias, int expert, int input_group, int scale_group) {
  return {module, out, in, bias, Split::kWhole, input_group, scale_group, expert};
}

void add_stacked(LayerSpec& layer, MoeSpec& moe, bool bias, int64_t hidden, int x, FreeGroups free) {
  LinearSpec gate_up = routed(moe.module + ".gate_up_proj", 2 * moe.intermediate, hidden, bias, kAllExperts, x, free.scale);
  LinearSpec down = routed(moe.module + ".down_proj", hidden, moe.intermediate, bias, kAllExperts, free.input, free.scale + 1);
  gate_up.stack = down.stack = moe.router.experts;
  gate_up.feeds_down = true;
  ExpertLinears expert;
  expert.gate_up = add_linear(layer, std::move(gate_up));
  expert.down = add_linear(layer, std::move(down));
  moe.experts.assign(static_cast<size_t>(moe.router.experts), expert);
}

void add_one_by_one(LayerSpec& layer, MoeSpec& moe, const MoeTensors& tensors, int64_t hidden, int x, FreeGroups free) {
  for (int e = 0; e < moe.router.experts; ++e, ++free.input, free.scale += 2) {
    const std::string module = moe.module + "." + std::to_string(e) + ".";
    LinearSpec gate = routed(module + tensors.gate, moe.intermediate, hidden, tensors.bias, e, x, free.scale);
    LinearSpec up = routed(module + tensors.up, moe.intermediate, hidden, tensors.bias, e, x, free.scale);
    LinearSpec down = routed(module + tensors.down, hidden, moe.intermediate, tensors.bias, e, free.input, free.scale + 1);
    gate.feeds_down = up.feeds_down = true;
    ExpertLinears expert;
    expert.gate = add_linear(layer, std::move(gate));
    expert.up = add_linear(layer, std::move(up));
    expert.down = add_linear(layer, std::move(down));
    moe.experts.push_back(expert);
  }
}

}  // namespace

std::string experts_key(const Config& config, const std::string& key) {
  std::string found;
  for (const std::string& name : {key, std::string("num_experts"), std::string("num_local_experts"), std::string("n_routed_experts")}) {
    if (!config.has(name)) continue;
    if (found.empty()) found = name;
    if (config.integer(name) != config.integer(found)) throw config.error(name, "and " + found + " are not the same");
  }
  return found.empty() ? key : found;
}

RouterSpec read_router(const Config& config, RouterSpec::Kind kind, const std::string& key) {
  constexpr int64_t kMostExperts = 4096, kMostInAll = 1 << 17;  // published models have up to 512, and 30 thousand in all layers
  RouterSpec router;
  router.kind = kind;
  const std::string name = experts_key(config, key);
  router.experts = config.size(name);
  if (router.experts > kMostExperts || router.experts * config.size("num_hidden_layers") > kMostInAll)
    throw config.error(name, "is " + std::to_string(router.experts) + ", more than any model has");
  router.top_k = config.size("num_experts_per_tok");
  if (router.top_k > router.experts)
    throw config.error("num_experts_per_tok",
                       "is " + std::to_string(router.top_k) + ", more than " + name + " = " + std::to_string(router.experts));
  return router;
}

void add_moe(LayerSpec& layer, const ModelSpec& model, MoeSpec moe, const MoeTensors& tensors) {
  BlockSpec block{add_block_norm(layer, model, "post_attention_layernorm"), {}};
  add_router(layer, moe.router, tensors.router, model.hidden);
  moe.module = layer.prefix + "." + tensors.experts;
  FreeGroups free = free_groups(layer);
  const int x = moe.input_group = free.input++;
  const int routed_x = moe.scales_input ? free.input++ : x;
  if (tensors.stacked)
    add_stacked(layer, moe, tensors.bias, model.hidden, routed_x, free);
  else
    add_one_by_one(layer, moe, tensors, model.hidden, routed_x, free);
  if (tensors.shared_intermediate > 0)
    moe.shared = add_mlp_linears(layer, {.intermediate = tensors.shared_intermediate, .module = tensors.shared}, model.hidden, x);
  block.body = std::move(moe);
  layer.blocks.push_back(std::move(block));
}

}  // namespace ptq::layers
