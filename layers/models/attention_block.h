#pragma once
// Grouped-query attention as nearly every family has it: q_proj, k_proj, v_proj and o_proj under "self_attn", behind input_layernorm.
// A family reads its heads, sets what is special (rope, window, ...) and adds the block to each layer.

#include <functional>
#include <string>
#include <vector>

#include "layers/config.h"
#include "layers/models/decoder.h"

namespace ptq::layers {

/// Which of the tensors that not all families have this one has.
struct AttentionTensors {
  bool qkv_bias = false, o_bias = false;
  bool qk_norm = false;  ///< q_norm and k_norm [head_dim], before rope
  bool sinks = false;    ///< sinks [heads]
};

/// heads, head_dim (`default_head_dim` where the config has none; 0 stands for hidden_size / heads) and scale. No kv heads yet.
AttentionSpec read_query_heads(const Config& config, int64_t default_head_dim = 0);
/// The same with num_key_value_heads, which must divide the heads; without it as many as heads.
AttentionSpec read_attention(const Config& config, int64_t default_head_dim = 0);

/// Adds the norm and the block. Groups: q, k and v share one input and one scale; o has its own.
void add_attention(LayerSpec& layer, const ModelSpec& model, AttentionSpec attention, const AttentionTensors& tensors);

/// Which layers attend to a part of the past only, `limited` as layer_types calls it ("sliding_attention"). Without layer_types
/// `otherwise(i)` says. Throws for a type that is neither this one nor full_attention.
std::vector<bool> limited_layers(const Config& config, size_t layers, const std::string& limited,
                                 const std::function<bool(size_t)>& otherwise);
/// Mistral's and Mixtral's window of each layer: sliding_window (0 where it is null) in all that layer_types does not exempt.
std::vector<int64_t> mistral_windows(const Config& config, size_t layers);
/// Qwen's: where use_sliding_window is set, layers from max_window_layers on (or those layer_types names) have sliding_window; else 0.
std::vector<int64_t> qwen_windows(const Config& config, size_t layers);

}  // namespace ptq::layers
