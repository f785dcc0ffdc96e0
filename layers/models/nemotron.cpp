// NemotronForCausalLM (Nemotron-4, Minitron): LayerNorm1p with bias, MLP down(relu(up x)²), rope over half of each head by default.
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"

namespace ptq::layers {

ModelSpec describe_nemotron(const Config& config) {
  config.expect_text("hidden_act", "relu2");
  ModelSpec model = read_decoder(config, "nemotron", 1e-5);
  model.final_norm.kind = NormSpec::Kind::kLayerNorm1p;
  const AttentionSpec attention = read_attention(config);
  const bool bias = config.flag_or("attention_bias", false);
  model.rope = read_rope(config, attention.head_dim, 0.5);
  const MlpShape mlp{
      .intermediate = config.size("intermediate_size"), .bias = config.flag_or("mlp_bias", false), .kind = MlpSpec::Kind::kReluSquared};
  for (LayerSpec& layer : model.layers) {
    add_attention(layer, model, attention, {.qkv_bias = bias, .o_bias = bias});
    add_mlp(layer, model, mlp);
  }
  return model;
}

}  // namespace ptq::layers
