// LlamaForCausalLM: Llama 2 and 3.x, Llama-3.1-Nemotron-Nano-8B, Nemotron-70B-Instruct, DeepSeek-R1-Distill-Llama.
#include "layers/models/dense_decoder.h"

namespace ptq::layers {

ModelSpec describe_llama(const Config& config) {
  DenseDecoder decoder = read_dense_decoder(config, "llama");
  if (config.text_or("hidden_act", "silu") != "silu") throw config.error("hidden_act", "is not silu");
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  return make_dense_decoder(config, decoder);
}

}  // namespace ptq::layers
