// Llama4ForCausalLM and the language model of Llama4ForConditionalGeneration (Scout, Maverick): chunked attention with interleaved rope,
// every few layers full attention without rope, mixtures of stacked experts whose input is weighted, and one shared expert.
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"
#include "layers/models/moe_block.h"

namespace ptq::layers {

namespace {

/// no_rope_layers: despite its name 1 is a layer with rope. Missing or empty: every no_rope_layer_interval-th has none.
std::vector<bool> rope_layers(const Config& config, size_t layers) {
  std::vector<int64_t> given;
  if (config.has("no_rope_layers")) given = config.integers("no_rope_layers");
  if (!given.empty() && given.size() != layers) throw config.error("no_rope_layers", "is not a list with one entry per layer");
  const auto interval = static_cast<size_t>(config.size_or("no_rope_layer_interval", 4));
  std::vector<bool> rope(layers);
  for (size_t i = 0; i < layers; ++i) rope[i] = given.empty() ? (i + 1) % interval != 0 : given[i] != 0;
  return rope;
}

/// moe_layers, which may be empty; without it every interleave_moe_layer_step-th.
std::vector<bool> moe_layers(const Config& config, size_t layers) {
  if (config.has("moe_layers")) return listed_layers(config, "moe_layers", layers);
  const auto step = static_cast<size_t>(config.size_or("interleave_moe_layer_step", 1));
  std::vector<bool> moe(layers);
  for (size_t i = 0; i < layers; ++i) moe[i] = (i + 1) % step == 0;
  return moe;
}

/// true, or a number that is not 0, as the first configs have it.
bool tunes_temperature(const Config& config) {
  if (!config.has("attn_temperature_tuning")) return true;
  if (config.json().at("attn_temperature_tuning").is_number_integer()) return config.integer("attn_temperature_tuning") != 0;
  return config.flag_or("attn_temperature_tuning", true);
}

void add_attentions(ModelSpec& model, const Config& config, const AttentionSpec& shape) {
  const bool bias = config.flag_or("attention_bias", false), qk_norm = config.flag_or("use_qk_norm", true);
  const std::vector<bool> rope = rope_layers(config, model.layers.size());
  const std::vector<bool> chunked =
      limited_layers(config, model.layers.size(), "chunked_attention", [&](size_t i) { return static_cast<bool>(rope[i]); });
  const int64_t chunk = config.size_or("attention_chunk_size", 8192);
  const float temperature = tunes_temperature(config) ? config.positive_or("attn_scale", 0.1) : 0.0f;
  const int64_t temperature_floor = config.size_or("floor_scale", 8192);
  for (LayerSpec& layer : model.layers) {
    const auto i = static_cast<size_t>(layer.index);
    AttentionSpec attention = shape;
    attention.chunk = chunked[i] ? chunk : 0;
    attention.rope = rope[i] ? AttentionSpec::Rope::kInterleaved : AttentionSpec::Rope::kNone;
    attention.l2_norm = rope[i] && qk_norm;
    attention.temperature = rope[i] ? 0.0f : temperature;
    attention.temperature_floor = temperature_floor;
    add_attention(layer, model, attention, {.qkv_bias = bias, .o_bias = bias});
  }
}

}  // namespace

ModelSpec describe_llama4(const Config& whole) {
  const auto [config, root] = language_model(whole);
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "llama4", 1e-5, root);
  const AttentionSpec attention = read_attention(config, 128);
  model.rope = read_rope(config, attention.head_dim, 1.0, 500000.0);
  add_attentions(model, config, attention);
  MoeSpec moe;
  moe.router = read_router(config, RouterSpec::Kind::kSigmoid, "num_local_experts");
  moe.intermediate = config.size("intermediate_size");
  moe.scales_input = true;
  const MoeTensors tensors{.router = "feed_forward.router",
                           .experts = "feed_forward.experts",
                           .stacked = true,
                           .shared_intermediate = moe.intermediate,
                           .shared = "feed_forward.shared_expert"};
  const std::vector<bool> has_experts = moe_layers(config, model.layers.size());
  for (LayerSpec& layer : model.layers) {
    if (has_experts[static_cast<size_t>(layer.index)])
      add_moe(layer, model, moe, tensors);
    else
      add_mlp(layer, model, {.intermediate = config.size("intermediate_size_mlp"), .module = "feed_forward"});
  }
  return model;
}

}  // namespace ptq::layers
