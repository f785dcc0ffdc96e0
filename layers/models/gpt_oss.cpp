// GptOssForCausalLM (20B, 120B): biases everywhere, attention sinks, every other layer with a sliding window, and stacked experts with a
// clamped activation, gate and up alternating. Experts stored as MXFP4 reach this project as bf16 tensors of the stacked layout.
#include "layers/models/attention_block.h"
#include "layers/models/moe_block.h"

namespace ptq::layers {

ModelSpec describe_gpt_oss(const Config& config) {
  config.expect_text("hidden_act", "silu");
  // Without either key transformers takes yarn with factor 32; no published config relies on that.
  if (!config.json().contains("rope_parameters") && !config.json().contains("rope_scaling"))
    throw config.error("rope_parameters", "is missing, and so is rope_scaling");
  ModelSpec model = read_decoder(config, "gpt_oss", 1e-5);
  AttentionSpec attention = read_attention(config, 64);
  const bool bias = config.flag_or("attention_bias", true);
  const AttentionTensors attention_tensors{.qkv_bias = bias, .o_bias = bias, .sinks = true};
  model.rope = read_rope(config, attention.head_dim, 1.0, 150000.0);
  const std::vector<bool> sliding = limited_layers(config, model.layers.size(), "sliding_attention", [](size_t i) { return i % 2 == 0; });
  const int64_t window = config.size_or("sliding_window", 128);
  MoeSpec moe;
  moe.router = read_router(config, RouterSpec::Kind::kTopKSoftmax, "num_local_experts");
  moe.router.has_bias = true;
  moe.intermediate = config.size("intermediate_size");
  moe.activation = MoeSpec::Activation::kClampedSwiglu;
  moe.interleaved = true;
  moe.alpha = config.positive_or("swiglu_alpha", 1.702);
  moe.limit = config.positive_or("swiglu_limit", 7.0);
  const MoeTensors moe_tensors{.router = "mlp.router", .stacked = true, .bias = true};
  for (LayerSpec& layer : model.layers) {
    attention.window = sliding[static_cast<size_t>(layer.index)] ? window : 0;
    add_attention(layer, model, attention, attention_tensors);
    add_moe(layer, model, moe, moe_tensors);
  }
  return model;
}

}  // namespace ptq::layers
