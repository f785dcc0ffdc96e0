#include "layers/models/deepseek_moe.h"

#include "layers/models/mlp_block.h"

namespace ptq::layers {

namespace {

RouterSpec read_grouped_router(const Config& config, const DeepseekMoeDefaults& defaults) {
  config.expect_text("scoring_func", "sigmoid");
  config.expect_text("topk_method", "noaux_tc");
  RouterSpec router = read_router(config, RouterSpec::Kind::kGroupedSigmoid, "n_routed_experts");
  router.normalize = config.flag_or("norm_topk_prob", true);
  router.scaling = config.positive_or("routed_scaling_factor", defaults.routed_scaling_factor);
  router.groups = config.size_or("n_group", defaults.n_group);
  router.top_groups = config.size_or("topk_group", defaults.topk_group);
  const auto mismatch = [&](const std::string& key, int64_t value, const std::string& what) {
    return config.error(key, "is " + std::to_string(value) + ", " + what);
  };
  if (router.experts % router.groups != 0)
    throw mismatch("n_group", router.groups, "which does not divide the " + std::to_string(router.experts) + " experts");
  const int64_t in_group = router.experts / router.groups;
  if (router.groups > 1 && in_group < 2) throw mismatch("n_group", router.groups, "and a group is ranked by its two best experts");
  if (router.top_groups > router.groups)
    throw mismatch("topk_group", router.top_groups, "more than n_group = " + std::to_string(router.groups));
  if (router.top_k > router.top_groups * in_group)
    throw mismatch("num_experts_per_tok", router.top_k,
                   "more than the " + std::to_string(router.top_groups * in_group) + " experts of topk_group groups");
  return router;
}

}  // namespace

DeepseekMoe read_deepseek_moe(const Config& config, const DeepseekMoeDefaults& defaults) {
  DeepseekMoe shape;
  shape.first = config.integer_or("first_k_dense_replace", defaults.first_k_dense_replace);
  if (shape.first < 0) throw config.error("first_k_dense_replace", "is negative");
  if (shape.first > 0) shape.dense_intermediate = config.size("intermediate_size");
  if (config.integer_or("moe_layer_freq", 1) != 1)
    throw config.error("moe_layer_freq", "is " + std::to_string(config.integer("moe_layer_freq")) + "; only 1 is supported");
  shape.moe.router = read_grouped_router(config, defaults);
  shape.moe.intermediate = config.size("moe_intermediate_size");
  const int64_t shared = config.integer_or("n_shared_experts", 1);
  if (shared != 0) shape.tensors.shared_intermediate = config.size_or("n_shared_experts", 1) * shape.moe.intermediate;
  return shape;
}

void add_deepseek_feed_forward(LayerSpec& layer, const ModelSpec& model, const DeepseekMoe& shape) {
  if (layer.index < shape.first)
    add_mlp(layer, model, {.intermediate = shape.dense_intermediate});
  else
    add_moe(layer, model, shape.moe, shape.tensors);
}

}  // namespace ptq::layers
