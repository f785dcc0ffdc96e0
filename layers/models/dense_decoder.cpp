#include "layers/models/dense_decoder.h"

#include <cmath>

namespace ptq::layers {

namespace {

int64_t positive(const Config& config, const std::string& key) {
  const int64_t value = config.integer(key);
  constexpr int64_t kMost = int64_t{1} << 31;
  if (value <= 0 || value > kMost) throw config.error(key, "is " + std::to_string(value) + ", which cannot be");
  return value;
}

/// A token id key that may be one id or a list (then its first).
int64_t token_id(const Config& config, const std::string& key) {
  if (!config.has(key)) return -1;
  const auto& value = config.json().at(key);
  if (value.is_array() && !value.empty() && value[0].is_number_integer()) return value[0].get<int64_t>();
  return value.is_number_integer() ? value.get<int64_t>() : -1;
}

void add_attention(LayerSpec& layer, const DenseDecoder& decoder, const DenseLayer& choice, int64_t hidden) {
  const std::string module = layer.prefix + ".self_attn";
  BlockSpec block;
  block.norm = add_norm(layer, {decoder.norm, layer.prefix + ".input_layernorm", decoder.eps}, hidden);
  if (choice.attention == DenseLayer::Attention::kLinear) {
    block.body = SingleLinearSpec{add_linear(layer, {module + ".linear_attn", hidden, hidden, false, Split::kRows, 0, 0})};
    layer.blocks.push_back(std::move(block));
    return;
  }
  AttentionSpec attention;
  attention.module = module;
  attention.heads = decoder.heads;
  attention.kv_heads = choice.kv_heads;
  attention.head_dim = decoder.head_dim;
  attention.window = choice.window;
  attention.scale = 1.0f / std::sqrt(static_cast<float>(decoder.head_dim));
  const int64_t q_width = decoder.heads * decoder.head_dim, kv_width = choice.kv_heads * decoder.head_dim;
  attention.q = add_linear(layer, {module + ".q_proj", q_width, hidden, decoder.qkv_bias, Split::kQueryHeads, 0, 0});
  attention.k = add_linear(layer, {module + ".k_proj", kv_width, hidden, decoder.qkv_bias, Split::kKeyValueHeads, 0, 0});
  attention.v = add_linear(layer, {module + ".v_proj", kv_width, hidden, decoder.qkv_bias, Split::kKeyValueHeads, 0, 0});
  attention.o = add_linear(layer, {module + ".o_proj", hidden, q_width, decoder.o_bias, Split::kRows, 1, 1});
  if (decoder.qk_norm) {
    attention.q_norm = add_norm(layer, {NormSpec::Kind::kRms, module + ".q_norm", decoder.eps}, decoder.head_dim).module;
    attention.k_norm = add_norm(layer, {NormSpec::Kind::kRms, module + ".k_norm", decoder.eps}, decoder.head_dim).module;
  }
  block.body = std::move(attention);
  layer.blocks.push_back(std::move(block));
}

void add_mlp(LayerSpec& layer, const DenseDecoder& decoder, const DenseLayer& choice, int64_t hidden) {
  const std::string module = layer.prefix + ".mlp";
  BlockSpec block;
  block.norm = add_norm(layer, {decoder.norm, layer.prefix + ".post_attention_layernorm", decoder.eps}, hidden);
  if (choice.mlp == DenseLayer::Mlp::kLinear) {
    block.body = SingleLinearSpec{add_linear(layer, {module + ".linear_mlp", hidden, hidden, false, Split::kRows, 2, 2})};
    layer.blocks.push_back(std::move(block));
    return;
  }
  MlpSpec mlp;
  const bool gated = choice.mlp == DenseLayer::Mlp::kSiluGated;
  mlp.kind = gated ? MlpSpec::Kind::kSiluGated : MlpSpec::Kind::kReluSquared;
  if (gated) mlp.gate = add_linear(layer, {module + ".gate_proj", choice.intermediate, hidden, decoder.mlp_bias, Split::kRows, 2, 2});
  mlp.up = add_linear(layer, {module + ".up_proj", choice.intermediate, hidden, decoder.mlp_bias, Split::kRows, 2, 2});
  mlp.down = add_linear(layer, {module + ".down_proj", hidden, choice.intermediate, decoder.mlp_bias, Split::kRows, 3, 3});
  block.body = mlp;
  layer.blocks.push_back(std::move(block));
}

}  // namespace

DenseDecoder read_dense_decoder(const Config& config, const std::string& family) {
  DenseDecoder decoder;
  decoder.family = family;
  decoder.heads = positive(config, "num_attention_heads");
  const int64_t hidden = positive(config, "hidden_size");
  if (!config.has("head_dim") && hidden % decoder.heads != 0)
    throw config.error("hidden_size", "is not a multiple of num_attention_heads, and there is no head_dim");
  decoder.head_dim = config.has("head_dim") ? positive(config, "head_dim") : hidden / decoder.heads;
  decoder.eps = static_cast<float>(config.number_or("rms_norm_eps", 1e-6));
  if (!(decoder.eps > 0)) throw config.error("rms_norm_eps", "is not positive");
  decoder.rope = read_rope(config, decoder.head_dim);
  DenseLayer layer;
  layer.kv_heads = config.integer_or("num_key_value_heads", decoder.heads);
  layer.intermediate = config.integer_or("intermediate_size", 0);
  constexpr int64_t kMostLayers = 10'000;
  const int64_t layers = positive(config, "num_hidden_layers");
  if (layers > kMostLayers) throw config.error("num_hidden_layers", "is " + std::to_string(layers) + ", more than any model has");
  decoder.layers.assign(static_cast<size_t>(layers), layer);
  return decoder;
}

std::vector<bool> sliding_layers(const Config& config, size_t layers, const std::function<bool(size_t)>& otherwise) {
  std::vector<bool> sliding(layers);
  const bool listed = config.has("layer_types");
  if (listed && (!config.json().at("layer_types").is_array() || config.json().at("layer_types").size() != layers))
    throw config.error("layer_types", "is not a list with one entry per layer");
  for (size_t i = 0; i < layers; ++i) {
    if (!listed) {
      sliding[i] = otherwise(i);
      continue;
    }
    const auto& type = config.json().at("layer_types")[i];
    if (type != "full_attention" && type != "sliding_attention")
      throw config.error("layer_types", "has the entry " + type.dump() + ", which this family does not support");
    sliding[i] = type == "sliding_attention";
  }
  return sliding;
}

void apply_qwen_window(const Config& config, DenseDecoder& decoder) {
  if (!config.flag_or("use_sliding_window", false)) return;
  const int64_t window = positive(config, "sliding_window");
  const auto first = static_cast<size_t>(config.integer_or("max_window_layers", 28));
  const std::vector<bool> sliding = sliding_layers(config, decoder.layers.size(), [first](size_t i) { return i >= first; });
  for (size_t i = 0; i < decoder.layers.size(); ++i) decoder.layers[i].window = sliding[i] ? window : 0;
}

ModelSpec make_dense_decoder(const Config& config, const DenseDecoder& decoder) {
  if (!(decoder.eps > 0)) throw config.error("rms_norm_eps", "(or norm_eps) is not positive");
  ModelSpec model;
  model.family = decoder.family;
  model.hidden = positive(config, "hidden_size");
  model.vocab = positive(config, "vocab_size");
  model.max_positions = config.integer_or("max_position_embeddings", 0);
  model.rope = decoder.rope;
  model.tied = config.flag_or("tie_word_embeddings", false);
  model.eos_id = token_id(config, "eos_token_id");
  model.bos_id = token_id(config, "bos_token_id");
  model.embedding = "model.embed_tokens.weight";
  model.final_norm = {decoder.norm, "model.norm", decoder.eps};
  model.lm_head = {"lm_head", model.vocab, model.hidden, false, Split::kRows, 0, 0};
  for (size_t i = 0; i < decoder.layers.size(); ++i) {
    const DenseLayer& choice = decoder.layers[i];
    LayerSpec layer;
    layer.index = static_cast<int64_t>(i);
    layer.prefix = "model.layers." + std::to_string(i);
    if (choice.attention == DenseLayer::Attention::kAttention && (choice.kv_heads <= 0 || decoder.heads % choice.kv_heads != 0))
      throw config.error("num_key_value_heads", "is " + std::to_string(choice.kv_heads) + " in layer " + std::to_string(i) +
                                                    ", which does not divide num_attention_heads = " + std::to_string(decoder.heads));
    if (choice.attention != DenseLayer::Attention::kNone) add_attention(layer, decoder, choice, model.hidden);
    if (choice.mlp != DenseLayer::Mlp::kNone) {
      if (choice.mlp != DenseLayer::Mlp::kLinear && choice.intermediate <= 0)
        throw config.error("intermediate_size", "is missing or not positive");
      add_mlp(layer, decoder, choice, model.hidden);
    }
    model.layers.push_back(std::move(layer));
  }
  return model;
}

}  // namespace ptq::layers
