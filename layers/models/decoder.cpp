#include "layers/models/decoder.h"

#include <algorithm>

namespace ptq::layers {

namespace {

/// A token id key that may be one id or a list (then its first).
int64_t token_id(const Config& config, const std::string& key) {
  if (!config.has(key)) return -1;
  const auto& value = config.json().at(key);
  if (value.is_array() && !value.empty() && value[0].is_number_integer()) return value[0].get<int64_t>();
  return value.is_number_integer() ? value.get<int64_t>() : -1;
}

float read_eps(const Config& config, double fallback) {
  for (const char* key : {"rms_norm_eps", "norm_eps", "layer_norm_epsilon"})
    if (config.has(key)) return config.positive_or(key, fallback);
  return static_cast<float>(fallback);
}

}  // namespace

LanguageModel language_model(const Config& config) {
  if (!config.has("text_config")) return {config, ""};
  return {config.part("text_config", {"eos_token_id", "bos_token_id", "tie_word_embeddings"}), "language_model."};
}

ModelSpec read_decoder(const Config& config, const std::string& family, double default_eps, const std::string& root) {
  constexpr int64_t kMostLayers = 10'000;
  ModelSpec model;
  model.family = family;
  model.hidden = config.size("hidden_size");
  model.vocab = config.size("vocab_size");
  model.max_positions = config.integer_or("max_position_embeddings", 0);
  model.tied = config.flag_or("tie_word_embeddings", false);
  model.eos_id = token_id(config, "eos_token_id");
  model.bos_id = token_id(config, "bos_token_id");
  model.embedding = root + "model.embed_tokens.weight";
  model.final_norm = {NormSpec::Kind::kRms, root + "model.norm", read_eps(config, default_eps)};
  model.lm_head = {.module = root + "lm_head", .out = model.vocab, .in = model.hidden};
  const int64_t layers = config.size("num_hidden_layers");
  if (layers > kMostLayers) throw config.error("num_hidden_layers", "is " + std::to_string(layers) + ", more than any model has");
  model.layers.resize(static_cast<size_t>(layers));
  for (int64_t i = 0; i < layers; ++i) {
    LayerSpec& layer = model.layers[static_cast<size_t>(i)];
    layer.index = i;
    layer.prefix = root + "model.layers." + std::to_string(i);
  }
  return model;
}

NormSpec add_block_norm(LayerSpec& layer, const ModelSpec& model, const std::string& name) {
  return add_norm(layer, {model.final_norm.kind, layer.prefix + "." + name, model.final_norm.eps}, model.hidden);
}

FreeGroups free_groups(const LayerSpec& layer) {
  FreeGroups free;
  for (const LinearSpec& linear : layer.linears) {
    free.input = std::max(free.input, linear.input_group + 1);
    free.scale = std::max(free.scale, linear.scale_group + 1);
  }
  return free;
}

std::vector<bool> listed_layers(const Config& config, const std::string& key, size_t layers) {
  std::vector<bool> listed(layers);
  if (!config.has(key)) return listed;
  for (const int64_t layer : config.integers(key))
    if (layer >= 0 && layer < static_cast<int64_t>(layers)) listed[static_cast<size_t>(layer)] = true;
  return listed;
}

}  // namespace ptq::layers
