// Qwen3ForCausalLM: RMS norms over each head of q and k before rope, head_dim of its own (heads · head_dim need not be hidden_size).
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"

namespace ptq::layers {

ModelSpec describe_qwen3(const Config& config) {
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "qwen3");
  AttentionSpec attention = read_attention(config, 128);
  const bool bias = config.flag_or("attention_bias", false);
  model.rope = read_rope(config, attention.head_dim);
  const MlpShape mlp{.intermediate = config.size("intermediate_size")};
  const std::vector<int64_t> windows = qwen_windows(config, model.layers.size());
  for (LayerSpec& layer : model.layers) {
    attention.window = windows[static_cast<size_t>(layer.index)];
    add_attention(layer, model, attention, {.qkv_bias = bias, .o_bias = bias, .qk_norm = true});
    add_mlp(layer, model, mlp);
  }
  return model;
}

}  // namespace ptq::layers
