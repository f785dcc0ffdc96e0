// DeciLMForCausalLM (Llama Nemotron Super, Ultra, 51B): Llama whose layers follow block_configs, each attention and each MLP present,
// absent (no-op: not even its norm exists) or one linear, with widths of their own.
#include "layers/models/attention_block.h"
#include "layers/models/mlp_block.h"

namespace ptq::layers {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostWidth = 1 << 24;  // as Config::size

bool set(const Json& block, const char* key) {
  if (!block.contains(key)) return false;
  const Json& value = block.at(key);
  return !(value.is_null() || value == Json(false));
}

void refuse(const Config& config, const Json& block, const std::string& where, std::initializer_list<const char*> keys) {
  for (const char* key : keys)
    if (set(block, key)) throw config.error(where + "." + key, "is set, which is not supported");
}

/// 2·mult·hidden/3, cut to an integer, then up to a multiple of 256; mult keeps the full precision of the file.
int64_t intermediate_size(const Config& config, double ffn_mult, int64_t hidden, const std::string& where) {
  const double exact = 2 * ffn_mult * static_cast<double>(hidden) / 3;
  if (!(exact >= 1 && exact <= kMostWidth)) throw config.error(where + ".ffn_mult", "gives an intermediate size that cannot be");
  return (static_cast<int64_t>(exact) + 255) / 256 * 256;
}

int64_t kv_heads(const Config& config, const Json& block, const std::string& where, int64_t heads) {
  if (set(block, "n_heads_in_group") && block.at("n_heads_in_group").is_number_integer()) {
    const auto group = block.at("n_heads_in_group").get<int64_t>();
    if (group <= 0 || heads % group != 0) throw config.error(where + ".n_heads_in_group", "does not divide num_attention_heads");
    return heads / group;
  }
  if (set(block, "num_key_value_heads") && block.at("num_key_value_heads").is_number_integer()) {
    const auto kv_heads = block.at("num_key_value_heads").get<int64_t>();
    if (kv_heads <= 0 || heads % kv_heads != 0) throw config.error(where + ".num_key_value_heads", "does not divide num_attention_heads");
    return kv_heads;
  }
  throw config.error(where + ".n_heads_in_group", "is missing");
}

int64_t mlp_width(const Config& config, const Json& block, const std::string& where, int64_t hidden) {
  if (set(block, "ffn_mult") && block.at("ffn_mult").is_number())
    return intermediate_size(config, block.at("ffn_mult").get<double>(), hidden, where);
  if (set(block, "intermediate_size") && block.at("intermediate_size").is_number_integer()) {
    const auto width = block.at("intermediate_size").get<int64_t>();
    if (width <= 0 || width > kMostWidth)
      throw config.error(where + ".intermediate_size", "is " + std::to_string(width) + ", which cannot be");
    return width;
  }
  throw config.error(where + ".ffn_mult", "is missing");
}

/// The block that is one linear [H, H].
void add_single_linear(LayerSpec& layer, const ModelSpec& model, const std::string& norm, const std::string& module) {
  BlockSpec block{add_block_norm(layer, model, norm), {}};
  const auto [input, scale] = free_groups(layer);
  block.body =
      SingleLinearSpec{add_linear(layer, {layer.prefix + "." + module, model.hidden, model.hidden, false, Split::kRows, input, scale})};
  layer.blocks.push_back(std::move(block));
}

}  // namespace

ModelSpec describe_nemotron_nas(const Config& config) {
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "nemotron_nas");
  AttentionSpec attention = read_query_heads(config);
  const bool bias = config.flag_or("attention_bias", false), mlp_bias = config.flag_or("mlp_bias", false);
  model.rope = read_rope(config, attention.head_dim);
  if (!config.has("block_configs")) throw config.error("block_configs", "is missing");
  const Json& blocks = config.json().at("block_configs");
  if (!blocks.is_array() || blocks.size() != model.layers.size())
    throw config.error("block_configs", "does not have one entry for each of the num_hidden_layers layers");
  for (LayerSpec& layer : model.layers) {
    const Json& block = blocks[static_cast<size_t>(layer.index)];
    const std::string where = "block_configs[" + std::to_string(layer.index) + "]";
    if (!block.is_object() || !block.contains("attention") || !block.contains("ffn")) throw config.error(where, "lacks attention or ffn");

    const Json& attends = block.at("attention");
    refuse(config, attends, where + ".attention",
           {"window_length", "num_sink_tokens", "use_prefill_window_in_sink_attention", "unshifted_sink", "sparsify", "llama4", "mamba"});
    if (set(attends, "replace_with_linear") && !set(attends, "no_op")) {
      add_single_linear(layer, model, "input_layernorm", "self_attn.linear_attn");
    } else if (!set(attends, "no_op")) {
      attention.kv_heads = kv_heads(config, attends, where + ".attention", attention.heads);
      add_attention(layer, model, attention, {.qkv_bias = bias, .o_bias = bias});
    }

    const Json& ffn = block.at("ffn");
    refuse(config, ffn, where + ".ffn", {"sparsify", "moe"});
    if (ffn.contains("gated") && ffn.at("gated") == Json(false))
      throw config.error(where + ".ffn.gated", "is false, which is not supported");
    if (set(ffn, "hidden_act") && ffn.at("hidden_act") != "silu") throw config.error(where + ".ffn.hidden_act", "is not silu");
    if (set(ffn, "replace_with_linear") && !set(ffn, "no_op")) {
      add_single_linear(layer, model, "post_attention_layernorm", "mlp.linear_mlp");
    } else if (!set(ffn, "no_op")) {
      add_mlp(layer, model, {.intermediate = mlp_width(config, ffn, where + ".ffn", model.hidden), .bias = mlp_bias});
    }
  }
  return model;
}

}  // namespace ptq::layers
