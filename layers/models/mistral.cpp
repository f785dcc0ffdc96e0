// MistralForCausalLM: Llama without biases, every layer with the sliding window of the config (null: full attention).
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"

namespace ptq::layers {

ModelSpec describe_mistral(const Config& config) {
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "mistral");
  AttentionSpec attention = read_attention(config);
  model.rope = read_rope(config, attention.head_dim);
  const MlpShape mlp{.intermediate = config.size("intermediate_size")};
  const std::vector<int64_t> windows = mistral_windows(config, model.layers.size());
  for (LayerSpec& layer : model.layers) {
    attention.window = windows[static_cast<size_t>(layer.index)];
    add_attention(layer, model, attention, {});
    add_mlp(layer, model, mlp);
  }
  return model;
}

}  // namespace ptq::layers
