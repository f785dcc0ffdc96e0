#pragma once
// What a model is, as data: the layers' blocks, their linears and every tensor's name, shape and split. Family files under models/ fill
// it from config.json; loading, computing, quantizing and planning read it. No weights here.

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "layers/rope.h"

namespace ptq::layers {

/// How the tensor ranks cut a tensor: always by rows of dimension 0 (see README: rows-only sharding).
enum class Split {
  kWhole,          ///< every rank holds it all: norms and other small vectors
  kRows,           ///< evenly, anywhere
  kQueryHeads,     ///< by attention heads
  kKeyValueHeads,  ///< by kv heads; above their number each is replicated
};

/// One matrix product of a layer. Weight [out, in] is tensor `module`.weight, bias [out] `module`.bias.
struct LinearSpec {
  std::string module;
  int64_t out = 0, in = 0;
  bool has_bias = false;
  Split split = Split::kRows;
  int input_group = 0;  ///< linears of the layer with the same number read the same tensor: one input_scale, one smoothing vector
  int scale_group = 0;  ///< linears of the layer with the same number are fused by servers: one format, one global weight scale
};

struct NormSpec {
  enum class Kind { kRms, kLayerNorm1p };
  Kind kind = Kind::kRms;
  std::string module;  ///< tensors `module`.weight and, for LayerNorm1p, `module`.bias
  float eps = 1e-6f;
};

/// Linears are given by their index in LayerSpec::linears.
struct AttentionSpec {
  int q = 0, k = 0, v = 0, o = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;          ///< sliding window in tokens; 0: full
  float scale = 1.0f;          ///< multiplies q·k
  std::string q_norm, k_norm;  ///< modules of the per-head RMS norms before rope; "" without
  std::string module;          ///< "model.layers.0.self_attn": where KV cache scales hang
};

struct MlpSpec {
  enum class Kind { kSiluGated, kReluSquared };
  Kind kind = Kind::kSiluGated;
  int gate = -1, up = 0, down = 0;  ///< gate -1 where there is none
};

/// A block that is one linear (NAS models).
struct SingleLinearSpec {
  int linear = 0;
};

/// hidden += body(norm(hidden)).
struct BlockSpec {
  NormSpec norm;
  std::variant<AttentionSpec, MlpSpec, SingleLinearSpec> body;
};

struct TensorSpec {
  std::string name;
  Shape shape;
  Split split = Split::kWhole;
  int linear = -1;  ///< index of the linear whose weight or bias it is
};

struct LayerSpec {
  int64_t index = 0;
  std::string prefix;  ///< "model.layers.0"
  std::vector<LinearSpec> linears;
  std::vector<BlockSpec> blocks;    ///< in order; a layer of two no-op blocks has none
  std::vector<TensorSpec> tensors;  ///< all of the layer's

  /// The attention block, or nullptr.
  const AttentionSpec* attention() const;
  /// Linears with this input group, ascending.
  std::vector<int> input_group(int group) const;
};

struct ModelSpec {
  std::string family;  ///< "llama", ...: the table file that made it
  int64_t hidden = 0, vocab = 0, max_positions = 0;
  RopeSpec rope;
  std::vector<LayerSpec> layers;
  std::string embedding;  ///< tensor [vocab, hidden]
  NormSpec final_norm;
  LinearSpec lm_head;  ///< module "lm_head"
  bool tied = false;   ///< lm_head's weight is the embedding
  int64_t eos_id = -1, bos_id = -1;

  /// Name of the tensor that holds the output projection.
  std::string head_weight() const { return tied ? embedding : lm_head.module + ".weight"; }
};

/// Adds `module`.weight (and .bias) to layer.linears and layer.tensors; returns the linear's index.
int add_linear(LayerSpec& layer, LinearSpec linear);
/// Adds the norm's tensors of `size` elements to the layer and returns it.
NormSpec add_norm(LayerSpec& layer, NormSpec norm, int64_t size);

}  // namespace ptq::layers
