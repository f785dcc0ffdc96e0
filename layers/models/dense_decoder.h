#pragma once
// The shape that all dense families share: hidden += Attention(norm(hidden)); hidden += MLP(norm(hidden)). A family file reads its config
// into a DenseDecoder and one DenseLayer per layer; this turns them into the ModelSpec.

#include <functional>
#include <string>
#include <vector>

#include "layers/config.h"
#include "layers/model_spec.h"

namespace ptq::layers {

/// One layer's choices. An absent attention or MLP has no norm and no tensor either.
struct DenseLayer {
  enum class Attention { kNone, kAttention, kLinear };
  enum class Mlp { kNone, kSiluGated, kReluSquared, kLinear };
  Attention attention = Attention::kAttention;
  Mlp mlp = Mlp::kSiluGated;
  int64_t kv_heads = 0;
  int64_t window = 0;
  int64_t intermediate = 0;
};

struct DenseDecoder {
  std::string family;
  int64_t heads = 0, head_dim = 0;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;
  NormSpec::Kind norm = NormSpec::Kind::kRms;
  float eps = 1e-6f;
  RopeSpec rope;
  std::vector<DenseLayer> layers;
};

/// What nearly every family reads alike: heads, head_dim, eps, rope, and one DenseLayer per layer with kv heads and intermediate size.
DenseDecoder read_dense_decoder(const Config& config, const std::string& family);
/// layer_types of the config, else `otherwise(i)`: does layer i use the sliding window?
std::vector<bool> sliding_layers(const Config& config, size_t layers, const std::function<bool(size_t)>& otherwise);
/// Qwen's rule: where use_sliding_window is set, layers from max_window_layers on (or those layer_types names) use sliding_window.
void apply_qwen_window(const Config& config, DenseDecoder& decoder);
/// The spec. Throws a data Error for sizes that cannot be (heads not divisible by kv heads, ...).
ModelSpec make_dense_decoder(const Config& config, const DenseDecoder& decoder);

}  // namespace ptq::layers
