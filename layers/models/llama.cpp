// LlamaForCausalLM: Llama 2 and 3.x, Llama-3.1-Nemotron-Nano-8B, Nemotron-70B-Instruct, DeepSeek-R1-Distill-Llama.
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"

namespace ptq::layers {

ModelSpec describe_llama(const Config& config) {
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "llama");
  const AttentionSpec attention = read_attention(config);
  const bool bias = config.flag_or("attention_bias", false);
  model.rope = read_rope(config, attention.head_dim);
  const MlpShape mlp{.intermediate = config.size("intermediate_size"), .bias = config.flag_or("mlp_bias", false)};
  for (LayerSpec& layer : model.layers) {
    add_attention(layer, model, attention, {.qkv_bias = bias, .o_bias = bias});
    add_mlp(layer, model, mlp);
  }
  return model;
}

}  // namespace ptq::layers
