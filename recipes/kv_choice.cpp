#include "recipes/kv_choice.h"

#include <variant>

namespace ptq::recipes {

namespace {

using checkpoint::Json;

/// Numbers of one token in the cache.
int64_t cached_width(const layers::LayerSpec& layer, const layers::AttentionHeads& attention) {
  for (const auto& block : layer.blocks)
    if (const auto* latent = std::get_if<layers::LatentAttentionSpec>(&block.body)) return latent->latent + latent->rot;
  return attention.kv_heads * (attention.head_dim + attention.v_head_dim);
}

int64_t cached_bits(KvFormat format, int64_t width) {
  constexpr int64_t kBlock = 16;
  switch (format) {
    case KvFormat::kNone:
      return 16 * width;
    case KvFormat::kFp8:
      return 8 * width;
    case KvFormat::kNvfp4:
    case KvFormat::kNvfp4Affine:
      return 4 * width + 8 * ((width + kBlock - 1) / kBlock);
  }
  throw bug("unknown KV cache format");
}

const std::string& chosen(const KvSensitivity& choice, const Mix& mix, size_t group) {
  return choice.formats[static_cast<size_t>(choice.groups[group].options[static_cast<size_t>(mix.choice[group])].candidate)];
}

}  // namespace

KvSensitivity kv_choice(const layers::ModelSpec& model, const Recipe& recipe) {
  check_kv_cache(model, recipe);
  KvSensitivity choice;
  choice.formats = recipe.autoquantize.kv_cache.formats;
  for (const layers::LayerSpec& layer : model.layers) {
    const layers::AttentionHeads* attention = layer.attention();
    if (!attention) continue;
    DecisionGroup group{attention->module, {attention->module}, layer.index, cached_width(layer, *attention), 1, {}};
    for (size_t f = 0; f < choice.formats.size(); ++f)
      group.options.push_back({static_cast<int>(f), cached_bits(kv_format(choice.formats[f]), group.weights)});
    choice.scores.emplace_back(group.options.size(), 0.0);
    choice.groups.push_back(std::move(group));
  }
  if (choice.groups.empty())
    throw user_error("the model has no attention block, whose KV cache could get a format",
                     recipe.where("quantization.autoquantize.kv_cache"), "remove it");
  return choice;
}

KvFormats kv_formats_of(const KvSensitivity& choice, const Mix& mix) {
  KvFormats formats;
  for (size_t g = 0; g < choice.groups.size(); ++g) formats[choice.groups[g].name] = kv_format(chosen(choice, mix, g));
  return formats;
}

Json kv_report(const KvSensitivity& choice, const Mix& mix, double budget) {
  Json layers = Json::array();
  for (size_t g = 0; g < choice.groups.size(); ++g) {
    const DecisionGroup& group = choice.groups[g];
    Json options = Json::array();
    for (size_t o = 0; o < group.options.size(); ++o)
      options.push_back({{"format", choice.formats[static_cast<size_t>(group.options[o].candidate)]},
                         {"bits", group.options[o].bits},
                         {"score", choice.scores[g][o]}});
    const size_t option = static_cast<size_t>(mix.choice[g]);
    layers.push_back({{"attention", group.name},
                      {"layer", group.layer},
                      {"width", group.weights},
                      {"format", chosen(choice, mix, g)},
                      {"bits", group.options[option].bits},
                      {"score", choice.scores[g][option]},
                      {"options", options}});
  }
  return {{"effective_bits", effective_bits(choice.groups, mix.cost)}, {"budget", budget}, {"estimated_kl", mix.score}, {"layers", layers}};
}

}  // namespace ptq::recipes
