#pragma once
// Names of models from before Megatron-core, in its names: language_model.encoder.layers.3.mlp.dense_4h_to_h.weight is
// decoder.layers.3.mlp.linear_fc2.weight. Layouts are those of Megatron-core from checkpoint_version 2 on.

#include <string>
#include <string_view>

namespace ptq::checkpoint {

/// Whether a name, or the key of a dictionary that is part of one, is of a model from before Megatron-core.
bool is_precore_name(std::string_view name);
/// Megatron-core's name of it. Names that have none there stay as they are.
std::string core_name(const std::string& precore);

}  // namespace ptq::checkpoint
