// MistralForCausalLM: Llama without biases, every layer with the sliding window of the config (null: full attention).
#include "layers/models/dense_decoder.h"

namespace ptq::layers {

ModelSpec describe_mistral(const Config& config) {
  DenseDecoder decoder = read_dense_decoder(config, "mistral");
  if (config.text_or("hidden_act", "silu") != "silu") throw config.error("hidden_act", "is not silu");
  const int64_t window = config.integer_or("sliding_window", 0);
  if (window < 0) throw config.error("sliding_window", "is negative");
  const std::vector<bool> sliding = sliding_layers(config, decoder.layers.size(), [](size_t) { return true; });
  for (size_t i = 0; i < decoder.layers.size(); ++i) decoder.layers[i].window = sliding[i] ? window : 0;
  return make_dense_decoder(config, decoder);
}

}  // namespace ptq::layers
