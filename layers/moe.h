#pragma once
// Routed experts. Tokens of a few micro-batches go through them together, expert by expert in ascending order, and each output is added to
// its token's hidden state in that order: the sum's bits depend neither on how many experts are in memory at once nor on the ranks that
// hold them. Tokens are split over the stage's ranks (each has its share of every micro-batch); experts over the expert group.

#include <functional>
#include <vector>

#include "layers/layer.h"
#include "parallel/shard.h"

namespace ptq::layers {

/// One expert's matrices, [out, in]: gate and up, or gate_up.
struct ExpertWeights {
  LinearWeights gate, up, gate_up, down;
  /// The one of these that is the layer's linear of that index.
  LinearWeights& of(const ExpertLinears& linears, int linear) {
    return linear == linears.down ? down : linear == linears.gate_up ? gate_up : linear == linears.gate ? gate : up;
  }
};

/// The tokens of one rank that go through the experts together.
struct TokenGroup {
  Tensor x;                        ///< [T, H] bf16 | f32: what the router and the experts read
  Tensor hidden;                   ///< [T, H] f32: gets the experts' outputs
  std::vector<int64_t> positions;  ///< [T] of each token among all ranks' tokens, counted from 0, ascending
  Tensor experts, weights;         ///< [T, K] i32 and f32, by route_tokens
};

/// The group's experts and weights. `vectors` holds the router's tensors. Looks at each token by itself; communicates nothing.
void route_tokens(const MoeSpec& moe, const std::map<std::string, Tensor>& vectors, Workspace& workspace, TokenGroup& group);
/// counts[e] += tokens of the group that visit expert e.
void count_tokens(const TokenGroup& group, std::vector<int64_t>& counts);

/// A pass for statistics alone: tokens go to experts that too few were routed to. Their outputs are dropped.
struct ForcedVisits {
  std::vector<int> experts;  ///< ascending; empty: none
  int64_t visits = 1;        ///< experts that a token is sent to
  int64_t stride = 1;        ///< every stride-th token is
  /// The forced experts of a token, none of them among its routed ones.
  std::vector<int> of(int64_t position, const int32_t* routed, int64_t top_k) const;
};
/// Gives each of `experts` twice tokens_each of a run's `tokens` tokens, or all where there are fewer: as few tokens as will do, each sent
/// to as few experts as will do.
ForcedVisits force_visits(std::vector<int> experts, int64_t tokens_each, int64_t tokens);

struct ExpertContext {
  DType operand = DType::kBF16;
  LayerHooks* hooks = nullptr;
  Workspace* workspace = nullptr;
  parallel::Communicator* group = nullptr;  ///< the ranks that split the experts
  int64_t exchange_tokens = 0;              ///< tokens of a rank exchanged at a time
  bool statistics_only = false;             ///< the hooks see what experts read; no output is computed
};

/// The experts [chunk.begin, chunk.end) are in memory: this rank has its even_share of them over the expert group. weights(e) is asked
/// for each of those that some token reaches, ascending: once, or over several ranks once for every block of tokens exchanged. `skip`: no
/// weights, outputs are zero (a rank that met an error keeps in step).
struct ExpertChunkView {
  parallel::Range experts;
  std::function<ExpertWeights(int)> weights;
  bool skip = false;
};

/// hidden[t] += weight · expert(x[t]) for every expert of the chunk that token t visits, in ascending order. Collective over the expert
/// group, where every rank passes the same chunk and forced visits; a rank without tokens passes a group of [0, H].
void forward_experts(const LayerSpec& layer, const ExpertChunkView& chunk, const ForcedVisits& forced, const ExpertContext& context,
                     TokenGroup& group);

/// Bytes that forward_experts takes from the workspace at most, for groups of `tokens` over all ranks of the expert group.
int64_t expert_scratch_bytes(const MoeSpec& moe, int64_t hidden, DType operand, int ranks, int64_t exchange_tokens);

// What moe.cpp and token_exchange.cpp share.

/// Tokens that visit one expert: rows of a tensor of inputs, in ascending order of position.
struct Visits {
  std::vector<int64_t> rows;
  std::vector<int64_t> positions;  ///< of the tokens among all
  std::vector<float> weights;
  void add(int64_t row, int64_t position, float weight) {
    rows.push_back(row);
    positions.push_back(position);
    weights.push_back(weight);
  }
};

/// One expert computed for visits first, first + 1, ... of n tokens; in buffers that the next piece reuses.
struct ExpertPiece {
  int64_t first = 0;
  Tensor input;     ///< [n, H]: what gate and up, or gate_up, read
  Tensor gate, up;  ///< [n, I] f32: what they made; of gate_up [n, 2·I] in `up`
  Tensor inner;     ///< [n, I]: what down read
  Tensor output;    ///< [n, H] f32
};

/// Runs expert e on rows of x and hands itself over to `take` piece by piece. Without `take` only what statistics need is computed.
void run_expert(const LayerSpec& layer, int expert, const ExpertWeights& weights, const Tensor& x, const Visits& visits, bool forced,
                const ExpertContext& context, const std::function<void(const ExpertPiece&)>& take);
/// How the expert's gate_up columns are meant.
kernels::GatedShape gated_shape(const MoeSpec& moe);
/// logits = x · Wᵀ (+ b), [T, E] f32 in the buffer "router".
Tensor router_logits(const RouterSpec& router, const std::map<std::string, Tensor>& vectors, const Tensor& x, Workspace& workspace);
/// Rows of one expert, or of the router, computed at a time.
constexpr int64_t kExpertRows = 1024;

/// forward_experts over several ranks: tokens go to their experts' ranks and the outputs come back.
void exchange_experts(const LayerSpec& layer, const ExpertChunkView& chunk, const ForcedVisits& forced, const ExpertContext& context,
                      TokenGroup& group);

/// Routed and forced visits of tokens [begin, end) of the group to every expert of the chunk, by expert - chunk.begin; rows are indices
/// into the group.
struct ChunkVisits {
  std::vector<Visits> routed, forced;
};
ChunkVisits chunk_visits(const MoeSpec& moe, const TokenGroup& group, int64_t begin, int64_t end, parallel::Range chunk,
                         const ForcedVisits& forced);

}  // namespace ptq::layers
