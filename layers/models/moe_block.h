#pragma once
// The mixture of experts, behind post_attention_layernorm: a router, experts stored one by one or stacked, and shared experts. A family
// reads its router, says where the tensors are, and adds the block to the layers that have one.

#include <string>

#include "layers/config.h"
#include "layers/models/decoder.h"

namespace ptq::layers {

/// Where a family keeps a mixture's tensors; modules follow the layer's prefix.
struct MoeTensors {
  std::string router = "mlp.gate", experts = "mlp.experts";
  /// Stored one by one: an expert's linears [out, in], for example "mlp.experts.7.gate_proj".
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj";
  /// All in two tensors, gate_up_proj [E, H, 2·I] and down_proj [E, I, H].
  bool stacked = false, bias = false;
  /// Their width together; 0: there are none.
  int64_t shared_intermediate = 0;
  std::string shared = "mlp.shared_experts";
};

/// experts and top_k. `key` is the family's name of the number of experts; other names that are in use are read as well.
RouterSpec read_router(const Config& config, RouterSpec::Kind kind, const std::string& key);
/// The name under which this config has the number of experts: `key` where it has none. Throws if two names give two numbers.
std::string experts_key(const Config& config, const std::string& key);

/// Adds the norm and the block. `moe` comes with its router, intermediate and activation; modules and linears are filled in.
/// Groups: all that reads the norm's output has one input (routed experts another one if they read weight · x); an expert's gate and up
/// share a scale; every down has both of its own.
void add_moe(LayerSpec& layer, const ModelSpec& model, MoeSpec moe, const MoeTensors& tensors);

}  // namespace ptq::layers
