#include "checkpoint/megatron_precore.h"

#include <array>
#include <utility>

namespace ptq::checkpoint {

namespace {

constexpr std::string_view kModel = "language_model.", kHeadCopy = "word_embeddings_for_head.", kEncoder = "encoder.", kLayers = "layers.";

using Renamed = std::pair<std::string_view, std::string_view>;

/// Parts of a layer, and of the encoder around its layers.
constexpr std::array kInLayer{
    Renamed{"input_layernorm.", "input_layernorm."},
    Renamed{"input_norm.", "input_layernorm."},
    Renamed{"self_attention.query_key_value.", "self_attention.linear_qkv."},
    Renamed{"self_attention.dense.", "self_attention.linear_proj."},
    Renamed{"post_attention_layernorm.", "pre_mlp_layernorm."},
    Renamed{"post_attention_norm.", "pre_mlp_layernorm."},
    Renamed{"mlp.dense_h_to_4h.", "mlp.linear_fc1."},
    Renamed{"mlp.dense_4h_to_h.", "mlp.linear_fc2."},
};
constexpr std::array kAroundLayers{
    Renamed{"final_layernorm.", "final_layernorm."},
    Renamed{"final_norm.", "final_layernorm."},
};

/// "" where the table has no such part.
template <size_t count>
std::string renamed(std::string_view part, const std::array<Renamed, count>& table) {
  for (const auto& [old, now] : table)
    if (part.starts_with(old)) return std::string(now) + std::string(part.substr(old.size()));
  return "";
}

}  // namespace

bool is_precore_name(std::string_view name) {
  for (const std::string_view part : {kModel, kHeadCopy})
    if (name.starts_with(part) || name == part.substr(0, part.size() - 1)) return true;
  return false;
}

std::string core_name(const std::string& precore) {
  std::string_view name = precore;
  // The last pipeline stage's copy of a tied embedding.
  if (name.starts_with(kHeadCopy)) return "embedding.word_embeddings." + precore.substr(kHeadCopy.size());
  if (!name.starts_with(kModel)) return precore;
  name.remove_prefix(kModel.size());
  if (name.starts_with("embedding.") || name.starts_with("output_layer.")) return std::string(name);
  if (!name.starts_with(kEncoder)) return precore;
  name.remove_prefix(kEncoder.size());
  std::string_view number;
  if (name.starts_with(kLayers)) {
    number = name.substr(0, name.find('.', kLayers.size()) + 1);
    name.remove_prefix(number.size());
  }
  const std::string part = number.empty() ? renamed(name, kAroundLayers) : renamed(name, kInLayer);
  return part.empty() ? precore : "decoder." + std::string(number) + part;
}

}  // namespace ptq::checkpoint
