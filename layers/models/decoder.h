#pragma once
// What stands around the blocks in every family: embedding, final norm, output projection, and layers that have no blocks yet. A family
// file reads this, adds the blocks of each layer in order (attention_block.h, mlp_block.h, moe_block.h), and is done.

#include <string>
#include <vector>

#include "layers/config.h"
#include "layers/model_spec.h"

namespace ptq::layers {

/// The language model of a multimodal config (text_config, tensors under "language_model."); a text model's config is all of it.
struct LanguageModel {
  Config config;
  std::string root;  ///< what its tensors' names begin with
};
LanguageModel language_model(const Config& config);

/// The model with num_hidden_layers layers without blocks and without rope. Norms are RMS norms.
ModelSpec read_decoder(const Config& config, const std::string& family, double default_eps = 1e-6, const std::string& root = "");

/// The norm in front of a block, of the kind and eps of the final one. Adds its tensors.
NormSpec add_block_norm(LayerSpec& layer, const ModelSpec& model, const std::string& name);

/// Group numbers from which on none is taken by a linear of the layer.
struct FreeGroups {
  int input = 0, scale = 0;
};
FreeGroups free_groups(const LayerSpec& layer);

/// Which layers the config's list `key` names; none without it. Numbers of layers that do not exist are ignored: published lists outlive
/// a cut num_hidden_layers.
std::vector<bool> listed_layers(const Config& config, const std::string& key, size_t layers);

}  // namespace ptq::layers
