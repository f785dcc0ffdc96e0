// Qwen2ForCausalLM (Qwen2, Qwen2.5): Llama with biases on q, k and v, and a sliding window from layer max_window_layers on if it is used.
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"

namespace ptq::layers {

ModelSpec describe_qwen2(const Config& config) {
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "qwen2");
  AttentionSpec attention = read_attention(config);
  model.rope = read_rope(config, attention.head_dim);
  const MlpShape mlp{.intermediate = config.size("intermediate_size")};
  const std::vector<int64_t> windows = qwen_windows(config, model.layers.size());
  for (LayerSpec& layer : model.layers) {
    attention.window = windows[static_cast<size_t>(layer.index)];
    add_attention(layer, model, attention, {.qkv_bias = true});
    add_mlp(layer, model, mlp);
  }
  return model;
}

}  // namespace ptq::layers
