// Qwen2ForCausalLM (Qwen2, Qwen2.5): Llama with biases on q, k and v, and a sliding window from layer max_window_layers on if it is used.
#include "layers/models/dense_decoder.h"

namespace ptq::layers {

ModelSpec describe_qwen2(const Config& config) {
  DenseDecoder decoder = read_dense_decoder(config, "qwen2");
  if (config.text_or("hidden_act", "silu") != "silu") throw config.error("hidden_act", "is not silu");
  decoder.qkv_bias = true;
  apply_qwen_window(config, decoder);
  return make_dense_decoder(config, decoder);
}

}  // namespace ptq::layers
