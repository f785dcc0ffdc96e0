#pragma once
// What a model is, as data: the layers' blocks, their linears and every tensor's name, shape and split. Family files under models/ fill
// it from config.json; loading, computing, quantizing and planning read it. No weights here.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/ops.h"
#include "layers/rope.h"

namespace ptq::layers {

/// How the tensor ranks cut a tensor: always by rows of dimension 0 (see README: rows-only sharding).
enum class Split {
  kWhole,          ///< every rank holds it all: norms and other small vectors
  kRows,           ///< evenly, anywhere
  kQueryHeads,     ///< by attention heads
  kKeyValueHeads,  ///< by kv heads; above their number each is replicated
};

/// LinearSpec::expert and TensorSpec::expert of what belongs to no routed expert, or to all of them in one stacked tensor.
constexpr int kNoExpert = -1, kAllExperts = -2;

/// One matrix product of a layer. Weight [out, in] is tensor `module`.weight, bias [out] `module`.bias. Stacked experts: weight
/// [stack, in, out] is tensor `module` itself (each expert transposed against nn.Linear), bias [stack, out] `module`_bias.
struct LinearSpec {
  std::string module;
  int64_t out = 0, in = 0;
  bool has_bias = false;
  Split split = Split::kRows;
  int input_group = 0;      ///< linears of the layer with the same number read the same tensor: one input_scale, one smoothing vector
  int scale_group = 0;      ///< linears of the layer with the same number are fused by servers: one format, one global weight scale
  int expert = kNoExpert;   ///< the routed expert it belongs to, or kAllExperts
  int64_t stack = 0;        ///< kAllExperts: number of experts
  bool feeds_down = false;  ///< routed experts: gate and up (true) or down (false); a server has one input_scale a layer for each

  bool is_routed() const { return expert != kNoExpert; }
  bool is_stacked() const { return expert == kAllExperts; }
  /// The tensor of a part: ".weight", ".bias", ".weight_scale", ... -> "q_proj.weight"; stacked "gate_up_proj",
  /// "gate_up_proj_weight_scale".
  std::string tensor(const std::string& part) const;
};

struct NormSpec {
  enum class Kind { kRms, kLayerNorm1p };
  Kind kind = Kind::kRms;
  std::string module;  ///< tensors `module`.weight and, for LayerNorm1p, `module`.bias
  float eps = 1e-6f;
};

/// What every kind of attention has: the heads that tensor ranks split, and where KV cache scales hang.
struct AttentionHeads {
  int64_t heads = 0, kv_heads = 0;
  int64_t head_dim = 0, v_head_dim = 0;  ///< of q and k; of v and the output
  float scale = 1.0f;                    ///< multiplies q·k
  std::string module;                    ///< "model.layers.0.self_attn"
};

/// Linears are given by their index in LayerSpec::linears.
struct AttentionSpec : AttentionHeads {
  enum class Rope { kHalf, kInterleaved, kNone };
  int q = 0, k = 0, v = 0, o = 0;
  Rope rope = Rope::kHalf;
  int64_t window = 0;          ///< sliding window in tokens; 0: full
  int64_t chunk = 0;           ///< a query sees only positions of its own chunk of this many; 0: full
  std::string q_norm, k_norm;  ///< modules of the per-head RMS norms before rope; "" without
  bool l2_norm = false;        ///< q and k of each head by their root mean square after rope, no weight
  float norm_eps = 1e-6f;      ///< of both
  float temperature = 0.0f;    ///< q · (1 + temperature · ln(1 + floor((position + 1) / temperature_floor))); 0: none
  int64_t temperature_floor = 1;
  std::string sinks;  ///< tensor [heads]: a column of the softmax without a value; "" without
};

/// DeepSeek's multi-head latent attention, computed expanded: q = q_b(norm(q_a x)), [c|k_rot] = kv_a x, [k_nope|v] = kv_b(norm(c)).
/// Heads are [nope | rot]; rope turns the rot parts (interleaved pairs), k_rot is one vector for all heads.
struct LatentAttentionSpec : AttentionHeads {
  int q_a = -1;  ///< -1: q_b reads x itself
  int q_b = 0, kv_a = 0, kv_b = 0, o = 0;
  NormSpec q_norm, kv_norm;  ///< of q_a's and kv_a's outputs
  int64_t latent = 0, nope = 0, rot = 0;
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

/// Which experts a token visits and with what weight: the rule, and where its tensors are. logits = x · `module`.weightᵀ (+ `module`.bias).
struct RouterSpec : kernels::RouteRule {
  std::string module;
  bool has_bias = false;
  int64_t experts = 0;
  std::string correction;  ///< kGroupedSigmoid: tensor [experts]; "" without
};

/// Indices of one routed expert's linears; stacked experts all have the same ones. Either gate and up, or gate_up.
struct ExpertLinears {
  int gate = -1, up = -1, gate_up = -1, down = -1;
};

/// y = Σ weight_e · expert_e(x) + shared(x). Always the last block of its layer.
struct MoeSpec {
  enum class Activation {
    kSiluGated,     ///< silu(gate) · up
    kClampedSwiglu  ///< gate ≤ limit, |up| ≤ limit: (up + 1) · gate · sigmoid(alpha · gate)
  };
  RouterSpec router;
  Activation activation = Activation::kSiluGated;
  bool interleaved = false;  ///< gate_up: gate in even rows and up in odd ones; else gate in the first half
  float alpha = 1.702f, limit = 7.0f;
  bool scales_input = false;  ///< the expert reads weight · x, and its output is not weighted
  std::string module;         ///< "model.layers.3.mlp.experts": what a server fuses into one
  int64_t intermediate = 0;
  int input_group = 0;  ///< of the router and the shared expert; routed experts have another where they read weight · x
  std::vector<ExpertLinears> experts;
  std::optional<MlpSpec> shared;
};

/// hidden += body(norm(hidden)).
struct BlockSpec {
  NormSpec norm;
  std::variant<AttentionSpec, LatentAttentionSpec, MlpSpec, SingleLinearSpec, MoeSpec> body;
};

struct TensorSpec {
  std::string name;
  Shape shape;
  Split split = Split::kWhole;
  int linear = -1;         ///< index of the linear whose weight or bias it is
  int expert = kNoExpert;  ///< as LinearSpec::expert
  bool is_weight() const { return linear >= 0 && shape.size() == (expert == kAllExperts ? 3u : 2u); }
};

struct LayerSpec {
  int64_t index = 0;
  std::string prefix;  ///< "model.layers.0"
  std::vector<LinearSpec> linears;
  std::vector<BlockSpec> blocks;    ///< in order; a layer of two no-op blocks has none
  std::vector<TensorSpec> tensors;  ///< all of the layer's

  /// The attention block's heads, or nullptr.
  const AttentionHeads* attention() const;
  /// The mixture of experts, or nullptr.
  const MoeSpec* moe() const;
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

/// Where factors on the channels that some linears read can go, so that nothing is left to multiply when the model is served.
struct Fold {
  enum class Kind {
    kNone,  ///< nowhere
    kNorm,  ///< the weight (and bias) of `norm`, whose output is what the linears read
    kRows   ///< the output rows (and bias) of `linear`
  };
  Kind kind = Kind::kNone;
  NormSpec norm;
  int linear = -1;
  std::vector<int32_t> rows;  ///< kRows, by channel: the row it comes from; channels of one row share their factor (grouped queries)
  float power = 1.0f;         ///< kRows: a row is multiplied by factor^power
};

/// Linears that read the same channels, up to a factor a token: one smoothing vector.
struct SmoothingGroup {
  int input_group = 0;         ///< the group that linear_input is called with
  std::vector<int> linears;    ///< ascending; without routed experts
  bool feeds_experts = false;  ///< the router and the experts' gate and up read it too
  Fold fold;
};
/// The layer's groups, consumers before the linears whose rows take their factors. What the experts' down projections read is no group:
/// each expert has factors of its own, see expert_fold.
std::vector<SmoothingGroup> smoothing_groups(const LayerSpec& layer);
/// Where the factors on one expert's down projection go: rows of its up, or gate_up.
Fold expert_fold(const LayerSpec& layer, int expert);

/// Adds the linear's weight (and bias) to layer.linears and layer.tensors; returns its index.
int add_linear(LayerSpec& layer, LinearSpec linear);
/// Adds the norm's tensors of `size` elements to the layer and returns it.
NormSpec add_norm(LayerSpec& layer, NormSpec norm, int64_t size);

}  // namespace ptq::layers
