// DeciLMForCausalLM (Llama Nemotron Super, Ultra, 51B): Llama whose layers follow block_configs, each attention and each MLP present,
// absent (no-op: not even its norm exists) or one linear, with widths of their own.
#include <cmath>

#include "layers/models/dense_decoder.h"

namespace ptq::layers {

namespace {

using Json = nlohmann::ordered_json;

bool set(const Json& block, const char* key) {
  if (!block.contains(key)) return false;
  const Json& value = block.at(key);
  return !(value.is_null() || value == Json(false));
}

/// 2·mult·hidden/3, cut to an integer, then up to a multiple of 256; mult keeps the full precision of the file.
int64_t intermediate_size(double ffn_mult, int64_t hidden) {
  const auto exact = static_cast<int64_t>(2 * ffn_mult * static_cast<double>(hidden) / 3);
  return (exact + 255) / 256 * 256;
}

void read_attention(const Config& config, const Json& block, const std::string& where, int64_t heads, DenseLayer& layer) {
  for (const char* unused :
       {"window_length", "num_sink_tokens", "use_prefill_window_in_sink_attention", "unshifted_sink", "sparsify", "llama4", "mamba"})
    if (set(block, unused)) throw config.error(where + "." + unused, "is set, which is not supported");
  if (set(block, "no_op")) {
    layer.attention = DenseLayer::Attention::kNone;
  } else if (set(block, "replace_with_linear")) {
    layer.attention = DenseLayer::Attention::kLinear;
  } else if (set(block, "n_heads_in_group") && block.at("n_heads_in_group").is_number_integer()) {
    const auto group = block.at("n_heads_in_group").get<int64_t>();
    if (group <= 0 || heads % group != 0) throw config.error(where + ".n_heads_in_group", "does not divide num_attention_heads");
    layer.kv_heads = heads / group;
  } else if (set(block, "num_key_value_heads") && block.at("num_key_value_heads").is_number_integer()) {
    layer.kv_heads = block.at("num_key_value_heads").get<int64_t>();
  } else {
    throw config.error(where + ".n_heads_in_group", "is missing");
  }
}

void read_ffn(const Config& config, const Json& block, const std::string& where, int64_t hidden, DenseLayer& layer) {
  for (const char* unused : {"sparsify", "moe"})
    if (set(block, unused)) throw config.error(where + "." + unused, "is set, which is not supported");
  if (block.contains("gated") && block.at("gated") == Json(false)) throw config.error(where + ".gated", "is false, which is not supported");
  if (set(block, "hidden_act") && block.at("hidden_act") != "silu") throw config.error(where + ".hidden_act", "is not silu");
  if (set(block, "no_op")) {
    layer.mlp = DenseLayer::Mlp::kNone;
  } else if (set(block, "replace_with_linear")) {
    layer.mlp = DenseLayer::Mlp::kLinear;
  } else if (set(block, "ffn_mult") && block.at("ffn_mult").is_number()) {
    layer.intermediate = intermediate_size(block.at("ffn_mult").get<double>(), hidden);
  } else if (set(block, "intermediate_size") && block.at("intermediate_size").is_number_integer()) {
    layer.intermediate = block.at("intermediate_size").get<int64_t>();
  } else {
    throw config.error(where + ".ffn_mult", "is missing");
  }
}

}  // namespace

ModelSpec describe_nemotron_nas(const Config& config) {
  DenseDecoder decoder = read_dense_decoder(config, "nemotron_nas");
  if (config.text_or("hidden_act", "silu") != "silu") throw config.error("hidden_act", "is not silu");
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  if (!config.has("block_configs")) throw config.error("block_configs", "is missing");
  const Json& blocks = config.json().at("block_configs");
  if (!blocks.is_array() || blocks.size() != decoder.layers.size())
    throw config.error("block_configs", "does not have one entry for each of the num_hidden_layers layers");
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string where = "block_configs[" + std::to_string(i) + "]";
    if (!blocks[i].is_object() || !blocks[i].contains("attention") || !blocks[i].contains("ffn"))
      throw config.error(where, "lacks attention or ffn");
    read_attention(config, blocks[i].at("attention"), where + ".attention", decoder.heads, decoder.layers[i]);
    read_ffn(config, blocks[i].at("ffn"), where + ".ffn", config.integer("hidden_size"), decoder.layers[i]);
  }
  return make_dense_decoder(config, decoder);
}

}  // namespace ptq::layers
