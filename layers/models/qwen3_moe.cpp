// Qwen3MoeForCausalLM: Qwen3 with mixtures of experts, by default in every layer.
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"
#include "layers/models/moe_block.h"

namespace ptq::layers {

ModelSpec describe_qwen3_moe(const Config& config) {
  config.expect_text("hidden_act", "silu");
  if (config.flag_or("use_sliding_window", false))
    throw config.error("use_sliding_window", "is true, which is not supported: releases of transformers disagree on which layers it means");
  ModelSpec model = read_decoder(config, "qwen3_moe");
  const AttentionSpec attention = read_attention(config);
  const bool bias = config.flag_or("attention_bias", false);
  const AttentionTensors tensors{.qkv_bias = bias, .o_bias = bias, .qk_norm = true};
  model.rope = read_rope(config, attention.head_dim);
  MoeSpec moe;
  const bool has_experts = config.integer(experts_key(config, "num_experts")) != 0;
  if (has_experts) {
    moe.router = read_router(config, RouterSpec::Kind::kSoftmax, "num_experts");
    moe.router.normalize = config.flag_or("norm_topk_prob", false);
    moe.intermediate = config.size("moe_intermediate_size");
  }
  const std::vector<bool> dense = listed_layers(config, "mlp_only_layers", model.layers.size());
  const int64_t step = config.size_or("decoder_sparse_step", 1);
  for (LayerSpec& layer : model.layers) {
    add_attention(layer, model, attention, tensors);
    if (has_experts && !dense[static_cast<size_t>(layer.index)] && (layer.index + 1) % step == 0)
      add_moe(layer, model, moe, {});
    else
      add_mlp(layer, model, {.intermediate = config.size("intermediate_size")});
  }
  return model;
}

}  // namespace ptq::layers
