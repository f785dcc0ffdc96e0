#pragma once
// A ModelSpec as lines of text, for tests that say what a family has: names without the layer's prefix.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "layers/models/models.h"

namespace ptq::test {

using Lines = std::vector<std::string>;

/// A config of `architecture` with H 16, 4 heads over 2 kv heads, I 24, 3 layers, V 50, and `more` keys, which replace these.
inline layers::ModelSpec tiny_model(const std::string& architecture, const std::string& more = "{}") {
  auto json =
      nlohmann::ordered_json::parse(R"({"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
    "num_hidden_layers": 3, "vocab_size": 50, "max_position_embeddings": 64, "eos_token_id": 2, "bos_token_id": 1})");
  json["architectures"] = {architecture};
  json.update(nlohmann::ordered_json::parse(more));
  return layers::describe_model(layers::Config(json, "config.json"));
}

/// "NAME [SHAPE] SPLIT" of every tensor of a layer, sorted.
inline Lines tensors_of(const layers::ModelSpec& model, size_t layer) {
  const layers::LayerSpec& spec = model.layers.at(layer);
  Lines lines;
  for (const layers::TensorSpec& tensor : spec.tensors) {
    static const char* const kSplits[] = {"whole", "rows", "query heads", "kv heads"};
    EXPECT_EQ(tensor.name.rfind(spec.prefix + ".", 0), 0u) << tensor.name;
    if (tensor.linear >= 0) {
      const layers::LinearSpec& linear = spec.linears.at(static_cast<size_t>(tensor.linear));
      EXPECT_EQ(linear.split, tensor.split) << tensor.name;
      EXPECT_EQ(linear.expert, tensor.expert) << tensor.name;
      EXPECT_TRUE(tensor.name == linear.tensor(".weight") || (linear.has_bias && tensor.name == linear.tensor(".bias"))) << tensor.name;
      EXPECT_EQ(tensor.is_weight(), tensor.name == linear.tensor(".weight")) << tensor.name;
    }
    lines.push_back(tensor.name.substr(spec.prefix.size() + 1) + " " + to_string(tensor.shape) + " " +
                    kSplits[static_cast<size_t>(tensor.split)]);
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

/// Modules of the linears that share an input (&LinearSpec::input_group), or that servers fuse (&LinearSpec::scale_group).
inline std::vector<Lines> groups_of(const layers::ModelSpec& model, size_t layer, int layers::LinearSpec::*group) {
  const layers::LayerSpec& spec = model.layers.at(layer);
  std::map<int, Lines> groups;
  for (const layers::LinearSpec& linear : spec.linears) groups[linear.*group].push_back(linear.module.substr(spec.prefix.size() + 1));
  std::vector<Lines> sorted;
  for (auto& [number, modules] : groups) sorted.push_back(modules);
  return sorted;
}

/// The layer's attention; fails the test where it has another kind or none.
inline const layers::AttentionSpec& attention_of(const layers::ModelSpec& model, size_t layer) {
  return std::get<layers::AttentionSpec>(model.layers.at(layer).blocks.at(0).body);
}

/// The mixture of experts that ends the layer.
inline const layers::MoeSpec& moe_of(const layers::ModelSpec& model, size_t layer) {
  const layers::LayerSpec& spec = model.layers.at(layer);
  EXPECT_EQ(spec.moe(), std::get_if<layers::MoeSpec>(&spec.blocks.back().body)) << "the mixture is the last block";
  return std::get<layers::MoeSpec>(spec.blocks.back().body);
}

/// 'D' of a layer with an MLP, 'M' of one with a mixture.
inline std::string kinds_of(const layers::ModelSpec& model) {
  std::string kinds;
  for (const layers::LayerSpec& layer : model.layers) kinds += layer.moe() ? 'M' : 'D';
  return kinds;
}

inline const layers::LinearSpec& linear_of(const layers::ModelSpec& model, size_t layer, int index) {
  return model.layers.at(layer).linears.at(static_cast<size_t>(index));
}

/// The layer's group numbers count from 0 and leave none out.
inline void expect_numbers_without_gaps(const layers::ModelSpec& model, size_t layer) {
  std::set<int> inputs, scales;
  for (const layers::LinearSpec& linear : model.layers.at(layer).linears) {
    inputs.insert(linear.input_group);
    scales.insert(linear.scale_group);
  }
  EXPECT_EQ(*inputs.begin(), 0);
  EXPECT_EQ(*inputs.rbegin() + 1, static_cast<int>(inputs.size()));
  EXPECT_EQ(*scales.begin(), 0);
  EXPECT_EQ(*scales.rbegin() + 1, static_cast<int>(scales.size()));
}

}  // namespace ptq::test
