// Qwen3ForCausalLM: RMS norms over each head of q and k before rope, head_dim of its own (heads · head_dim need not be hidden_size).
#include "layers/models/dense_decoder.h"

namespace ptq::layers {

ModelSpec describe_qwen3(const Config& config) {
  DenseDecoder decoder = read_dense_decoder(config, "qwen3");
  if (config.text_or("hidden_act", "silu") != "silu") throw config.error("hidden_act", "is not silu");
  decoder.head_dim = config.integer_or("head_dim", 128);
  decoder.rope = read_rope(config, decoder.head_dim);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.qk_norm = true;
  apply_qwen_window(config, decoder);
  return make_dense_decoder(config, decoder);
}

}  // namespace ptq::layers
