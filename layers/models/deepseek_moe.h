#pragma once
// DeepSeek's feed-forward layers, which GLM-4.5 has too: dense ones first, then mixtures whose router picks experts within groups
// (noaux_tc), with shared experts.

#include "layers/models/moe_block.h"

namespace ptq::layers {

struct DeepseekMoe {
  int64_t first = 0;               ///< the first layer with a mixture
  int64_t dense_intermediate = 0;  ///< 0 where no layer is dense
  MoeSpec moe;
  MoeTensors tensors;
};

/// What a config that lacks the key means; DeepSeek's.
struct DeepseekMoeDefaults {
  int64_t first_k_dense_replace = 3, n_group = 8, topk_group = 4;
  double routed_scaling_factor = 2.5;
};

/// Throws for routers of other DeepSeek models (softmax scores, greedy choice) and for groups that do not fit the experts.
DeepseekMoe read_deepseek_moe(const Config& config, const DeepseekMoeDefaults& defaults);
/// Adds the layer's norm and its MLP or mixture.
void add_deepseek_feed_forward(LayerSpec& layer, const ModelSpec& model, const DeepseekMoe& shape);

}  // namespace ptq::layers
