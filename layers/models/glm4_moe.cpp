// Glm4MoeForCausalLM (GLM-4.5, 4.6): DeepSeek's mixtures on a Llama-like attention, rope over half of each head, o_proj never with a bias.
#include "layers/models/attention_block.h"
#include "layers/models/deepseek_moe.h"

namespace ptq::layers {

ModelSpec describe_glm4_moe(const Config& config) {
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "glm4_moe", 1e-5);
  const AttentionSpec attention = read_attention(config, 128);
  const AttentionTensors tensors{.qkv_bias = config.flag_or("attention_bias", false), .qk_norm = config.flag_or("use_qk_norm", false)};
  model.rope = read_rope(config, attention.head_dim, 0.5);
  const DeepseekMoe feed_forward =
      read_deepseek_moe(config, {.first_k_dense_replace = 1, .n_group = 1, .topk_group = 1, .routed_scaling_factor = 1.0});
  for (LayerSpec& layer : model.layers) {
    add_attention(layer, model, attention, tensors);
    add_deepseek_feed_forward(layer, model, feed_forward);
  }
  return model;
}

}  // namespace ptq::layers
