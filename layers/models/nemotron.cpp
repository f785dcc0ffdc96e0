// NemotronForCausalLM (Nemotron-4, Minitron): LayerNorm1p with bias, MLP down(relu(up x)²), rope over half of each head by default.
#include "layers/models/dense_decoder.h"

namespace ptq::layers {

ModelSpec describe_nemotron(const Config& config) {
  DenseDecoder decoder = read_dense_decoder(config, "nemotron");
  if (config.text_or("hidden_act", "relu2") != "relu2") throw config.error("hidden_act", "is not relu2");
  decoder.norm = NormSpec::Kind::kLayerNorm1p;
  decoder.eps = static_cast<float>(config.number_or("norm_eps", 1e-5));
  decoder.rope = read_rope(config, decoder.head_dim, 0.5);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  for (DenseLayer& layer : decoder.layers) layer.mlp = DenseLayer::Mlp::kReluSquared;
  return make_dense_decoder(config, decoder);
}

}  // namespace ptq::layers
