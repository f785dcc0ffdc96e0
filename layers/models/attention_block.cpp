#include "layers/models/attention_block.h"

#include <cmath>

namespace ptq::layers {

AttentionSpec read_query_heads(const Config& config, int64_t default_head_dim) {
  AttentionSpec attention;
  attention.heads = config.size("num_attention_heads");
  const int64_t hidden = config.size("hidden_size");
  if (config.has("head_dim") || default_head_dim > 0) {
    attention.head_dim = config.size_or("head_dim", default_head_dim);
  } else {
    if (hidden % attention.heads != 0)
      throw config.error("hidden_size", "is not a multiple of num_attention_heads, and there is no head_dim");
    attention.head_dim = hidden / attention.heads;
  }
  attention.v_head_dim = attention.head_dim;
  attention.scale = 1.0f / std::sqrt(static_cast<float>(attention.head_dim));
  return attention;
}

AttentionSpec read_attention(const Config& config, int64_t default_head_dim) {
  AttentionSpec attention = read_query_heads(config, default_head_dim);
  attention.kv_heads = config.size_or("num_key_value_heads", attention.heads);
  if (attention.heads % attention.kv_heads != 0)
    throw config.error("num_key_value_heads", "is " + std::to_string(attention.kv_heads) +
                                                  ", which does not divide num_attention_heads = " + std::to_string(attention.heads));
  return attention;
}

void add_attention(LayerSpec& layer, const ModelSpec& model, AttentionSpec attention, const AttentionTensors& tensors) {
  BlockSpec block{add_block_norm(layer, model, "input_layernorm"), {}};
  const std::string module = layer.prefix + ".self_attn";
  const int64_t width = attention.heads * attention.head_dim, kv_width = attention.kv_heads * attention.head_dim;
  const auto [x, qkv] = free_groups(layer);
  attention.module = module;
  attention.norm_eps = model.final_norm.eps;
  attention.q = add_linear(layer, {module + ".q_proj", width, model.hidden, tensors.qkv_bias, Split::kQueryHeads, x, qkv});
  attention.k = add_linear(layer, {module + ".k_proj", kv_width, model.hidden, tensors.qkv_bias, Split::kKeyValueHeads, x, qkv});
  attention.v = add_linear(layer, {module + ".v_proj", kv_width, model.hidden, tensors.qkv_bias, Split::kKeyValueHeads, x, qkv});
  attention.o = add_linear(layer, {module + ".o_proj", model.hidden, width, tensors.o_bias, Split::kRows, x + 1, qkv + 1});
  if (tensors.qk_norm) {
    attention.q_norm = add_norm(layer, {NormSpec::Kind::kRms, module + ".q_norm", attention.norm_eps}, attention.head_dim).module;
    attention.k_norm = add_norm(layer, {NormSpec::Kind::kRms, module + ".k_norm", attention.norm_eps}, attention.head_dim).module;
  }
  if (tensors.sinks) {
    attention.sinks = module + ".sinks";
    layer.tensors.push_back({attention.sinks, {attention.heads}, Split::kWhole});
  }
  block.body = std::move(attention);
  layer.blocks.push_back(std::move(block));
}

std::vector<bool> limited_layers(const Config& config, size_t layers, const std::string& limited,
                                 const std::function<bool(size_t)>& otherwise) {
  std::vector<bool> is_limited(layers);
  const bool listed = config.has("layer_types");
  if (listed && (!config.json().at("layer_types").is_array() || config.json().at("layer_types").size() != layers))
    throw config.error("layer_types", "is not a list with one entry per layer");
  for (size_t i = 0; i < layers; ++i) {
    if (!listed) {
      is_limited[i] = otherwise(i);
      continue;
    }
    const auto& type = config.json().at("layer_types")[i];
    if (type != "full_attention" && type != limited)
      throw config.error("layer_types", "has the entry " + type.dump() + ", which this family does not support");
    is_limited[i] = type == limited;
  }
  return is_limited;
}

std::vector<int64_t> mistral_windows(const Config& config, size_t layers) {
  const std::vector<bool> sliding = limited_layers(config, layers, "sliding_attention", [](size_t) { return true; });
  std::vector<int64_t> windows(layers);
  if (!config.has("sliding_window")) return windows;
  for (size_t i = 0; i < layers; ++i) windows[i] = sliding[i] ? config.size("sliding_window") : 0;
  return windows;
}

std::vector<int64_t> qwen_windows(const Config& config, size_t layers) {
  std::vector<int64_t> windows(layers);
  if (!config.flag_or("use_sliding_window", false)) return windows;
  const int64_t window = config.size("sliding_window"), first = config.integer_or("max_window_layers", 28);
  const std::vector<bool> sliding =
      limited_layers(config, layers, "sliding_attention", [first](size_t i) { return static_cast<int64_t>(i) >= first; });
  for (size_t i = 0; i < layers; ++i) windows[i] = sliding[i] ? window : 0;
  return windows;
}

}  // namespace ptq::layers
