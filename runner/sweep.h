#pragma once
// The streaming forward pass: windows of consecutive layers are read ahead, computed with all micro-batches and dropped; only hidden
// states stay. Pipeline ranks split each window by bytes; micro-batches flow through them and come back to the first as the next window's
// inputs. Routed experts pass through memory chunk by chunk, each chunk once for a group of micro-batches. Hidden states are rounded to
// the store's dtype after every layer, so that neither windows nor pipeline ranks nor chunks change a bit.

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/reader.h"
#include "layers/backward.h"
#include "layers/layer.h"
#include "layers/moe.h"
#include "parallel/mesh.h"
#include "runner/expert_chunks.h"
#include "runner/hidden_store.h"
#include "runner/placement.h"
#include "runner/sweep_plan.h"
#include "runner/weight_loader.h"

namespace ptq::runner {

/// A layer's tensors on this rank but those of routed experts: what it read, and what it computes with.
struct LayerTensors {
  const layers::LayerSpec* layer = nullptr;
  std::vector<layers::TensorSpec> specs;
  std::vector<Placement> placements;
  std::vector<Tensor> shares;            ///< rows this rank reads and owns
  std::map<std::string, Tensor> slices;  ///< rows it computes with; without those it does not need when the sweep computes nothing
};

/// Puts one tensor of an expert in its place as [out, in] or [out]; transposes a stacked weight [1, in, out].
void place_expert_tensor(const layers::TensorSpec& spec, const Tensor& stored, layers::LinearWeights& linear);

/// What a sweep is for. Methods run on the main thread; only those that say so communicate.
class SweepClient {
 public:
  virtual ~SweepClient() = default;
  /// The tensors to read for a layer, those of experts included.
  virtual std::vector<layers::TensorSpec> tensors(const layers::LayerSpec& layer) const { return layer.tensors; }
  /// Rows of the tensor that one rank has to own together, as place() takes it.
  virtual int64_t row_unit(const layers::LayerSpec&, const layers::TensorSpec&) const { return 1; }
  /// Bytes of the computed form of a layer per byte read (dequantized weights are larger than their codes).
  virtual double expansion() const { return 1.0; }
  /// Once per layer, before its forward: looks at the shares, may throw.
  virtual void loaded(const LayerTensors&) {}
  /// Once per chunk: looks at the experts this rank owns, may throw.
  virtual void experts_loaded(const ExpertChunk&) {}
  /// The slices as weights.
  virtual layers::LayerWeights weights(const LayerTensors& tensors) const;
  /// One expert of the chunk as weights.
  virtual layers::ExpertWeights expert_weights(const ExpertChunk& chunk, int expert) const;
  virtual layers::LayerHooks& hooks() = 0;

  /// counts[e]: tokens of this rank that were routed to expert e, once per layer and group of micro-batches.
  virtual void routed(const layers::LayerSpec&, const std::vector<int64_t>& /*counts*/) {}
  /// Once per chunk, after all of this rank's tokens went through it, or when it was read where nothing is computed; may communicate over
  /// the stage. Also for broken chunks. `stays`: the chunk is in memory until its last sight.
  virtual void experts_forwarded(const ExpertChunk&, bool /*stays*/) {}
  /// Where nothing is computed: does the client use the slices of this layer's norms, routers and biases all the same?
  virtual bool needs_vectors(const layers::LayerSpec&) const { return false; }
  /// True when experts_forwarded is to see all tokens at once: then all micro-batches of a rank form one group.
  virtual bool keeps_expert_tokens() const { return false; }
  /// Bytes that observing a layer takes of this rank while its window is in memory.
  virtual int64_t statistics_bytes(const layers::LayerSpec&) const { return 0; }
  /// Bytes that a token takes while its experts are looked at, for each expert it visits.
  virtual int64_t visit_bytes() const { return 0; }
  /// True when forced() is to be asked; then all micro-batches of a rank form one group.
  virtual bool forces_visits() const { return false; }
  /// Experts to visit for statistics alone. counts: routed tokens of all ranks.
  virtual layers::ForcedVisits forced(const layers::LayerSpec&, const std::vector<int64_t>& /*counts*/) { return {}; }

  /// What went wrong during the window's forward, if anything.
  virtual std::optional<Error> error() { return std::nullopt; }
  /// After a window: its layers on this rank, statistics complete. Every rank of the stage calls it; may communicate over the stage.
  virtual void window_done(const std::vector<LayerTensors>&) {}
  /// Should the layer's tokens pass a chunk that is read again once more, for the hooks alone, before its last sight? experts_forwarded is
  /// then called again.
  virtual bool shows_tokens_again(const layers::LayerSpec&) const { return false; }
  /// The chunk's last sight: after its forward, or, where statistics of the whole layer are needed first, after window_done.
  virtual void experts_done(const ExpertChunk&) {}
  virtual bool needs_layer_first(const layers::LayerSpec&) const { return false; }
};

// layer_tensors.cpp

/// What this rank reads of a layer for the client, but for routed experts.
LoadUnit layer_unit(const SweepClient& client, const layers::LayerSpec& layer, const checkpoint::Reader& reader,
                    const parallel::Mesh& mesh);
/// `shares` as layer_unit asked for them, in their places.
LayerTensors place_layer(const SweepClient& client, const layers::LayerSpec& layer, const checkpoint::Reader& reader,
                         const parallel::Mesh& mesh, std::vector<Tensor> shares);
/// Slices of all tensors, or of those alone that are no weights of linears. Collective over the stage.
void assemble_layer(LayerTensors& tensors, const checkpoint::Reader& reader, const parallel::Mesh& mesh, bool vectors_only);

/// One of several models of the same layers that a backward sweep reads side by side.
struct BackwardSource {
  const checkpoint::Reader* reader = nullptr;
  SweepClient* client = nullptr;  ///< says which tensors, and makes weights of them
};

/// What a backward sweep is for.
class BackwardClient {
 public:
  virtual ~BackwardClient() = default;
  /// The gradient by the final hidden states `hidden` [n, H] f32 of these tokens of micro-batch m, [n, H] f32. Communicates nothing.
  virtual Tensor loss_gradient(int64_t m, parallel::Range tokens, const Tensor& hidden) = 0;
  /// A layer's turn: its weights by source, those of routed experts not among them.
  virtual void layer_begins(const layers::LayerSpec& layer, const std::vector<layers::LayerWeights>& weights) = 0;
  /// Then a chunk of its experts, by source; gradients of its experts follow until the next. Never of a broken chunk.
  virtual void chunk_begins(const std::vector<const ExpertChunk*>& /*chunks*/) {}
  virtual layers::GradientHooks& hooks() = 0;
  /// All of the layer's gradients were shown. Collective over the world.
  virtual void layer_done(const layers::LayerSpec& layer) = 0;
};

/// The token rows of one data rank.
struct TokenRows {
  std::vector<std::vector<int32_t>> ids;
  int64_t first = 0;             ///< index of the first among all ranks' rows
  int64_t step = 1;              ///< from one to the next among all
  std::vector<int64_t> lengths;  ///< of all ranks' rows, in tokens

  /// Rows dealt out one by one, so that micro-batches of the same number hold neighbouring rows: sums over all ranks' tokens can then be
  /// taken in the order of rows.
  static TokenRows dealt(const std::vector<std::vector<int32_t>>& all, int64_t ranks, int64_t rank);
  /// Every rank a run of neighbours.
  static TokenRows run(const std::vector<std::vector<int32_t>>& all, int64_t ranks, int64_t rank);
};

struct SweepOptions {
  bool forward = true;            ///< false: read, loaded() and ..._done() only
  DType operand = DType::kBF16;   ///< of matrix product inputs
  DType hidden = DType::kBF16;    ///< of the hidden states kept
  int64_t host_memory = 0;        ///< bytes this rank may use in all
  std::string scratch;            ///< folder for spilled hidden states
  int64_t micro_batch = 0;        ///< tokens computed at a time, unless one row is longer; 0: as many as memory allows
  int64_t experts_in_memory = 0;  ///< of a layer, on this rank; 0: as many as memory allows
  bool keep_inputs = false;       ///< every layer's input is kept for run_backward; the mesh has one pipeline stage
  int64_t first_layer = 0;        ///< run() begins here, with the hidden states in the file `hidden_states`, unless it is 0
  std::string hidden_states;
  int64_t end_layer = -1;  ///< run() ends before it, and run_backward begins below it, with the gradients in the file `gradients`;
  std::string gradients;   ///<   -1: after the last layer, with those of the loss
};

/// Layers are counted in the order in which they are passed: backwards from the last.
struct SweepProgress {
  int64_t first_layer = 0, layers_done = 0, layers = 0, tokens = 0;
  double seconds = 0, forward_seconds = 0, wait_seconds = 0;
  int64_t bytes_read = 0;
};

class Sweep {
 public:
  /// run() throws a user Error when host_memory is too small.
  Sweep(const layers::ModelSpec& model, const checkpoint::Reader& reader, const parallel::Mesh& mesh, TokenRows rows, SweepOptions options);

  /// Collective over the world. `on_window` is called on every rank after each window.
  void run(SweepClient& client, const std::function<void(const SweepProgress&)>& on_window);

  /// After run with keep_inputs: from the last layer to the first, each is loaded once of every source, its forward pass made again from
  /// its kept input, and gradients taken back through it; sources[0] is the model that run() ran. Gradients between layers are kept in the
  /// dtype of hidden states. Collective over the world.
  void run_backward(const std::vector<BackwardSource>& sources, BackwardClient& client,
                    const std::function<void(const SweepProgress&)>& on_layer);

  /// What a later sweep of the same rows begins with, whatever its mesh: the hidden states after the layers that run() has done, or the
  /// gradients by the input of the last layer that run_backward has done. A file of [tokens of all ranks, H], fsynced. Meant for on_window
  /// and on_layer. Collective over the world.
  void save_hidden_states(const std::string& path) { save(mesh_.pipeline_rank() == 0 ? &*store_ : nullptr, path); }
  void save_gradients(const std::string& path) { save(&*gradients_, path); }

  int64_t micro_batches() const { return static_cast<int64_t>(batches_.size()); }
  const layers::Batch& batch(int64_t m) const { return batches_[static_cast<size_t>(m)]; }
  /// After run, on pipeline rank 0: the final hidden states of micro-batch m (before the final norm), [T, H] f32. Collective over tensor.
  Tensor final_hidden(int64_t m);
  bool spilled() const { return store_ && store_->spilled(); }
  /// Experts of a layer that one rank held at a time; 0 when it held all of its own.
  int64_t streamed_experts() const { return streams_experts_ ? plan_.experts : 0; }
  layers::Workspace& workspace() { return workspace_; }

 private:
  /// Tokens of a rank that are exchanged with the other expert ranks at a time.
  static constexpr int64_t kExchangeTokens = 1024;

  /// What memory allows. All ranks agree on the least of each.
  struct Plan {
    int64_t micro_batch = 0;  ///< tokens at most, unless one row is longer
    int64_t depth = 0;        ///< of windows, as cut_windows takes it
    int64_t experts = 0;      ///< of a chunk, per expert rank; 0 for models without
    int64_t group = 1;        ///< micro-batches that go through the experts together
  };
  /// Bytes of this rank at one choice of the plan.
  struct Needs;
  struct PendingOutput;
  class ExpertSource;

  // sweep_plan.cpp
  /// One after the last layer of this sweep.
  int64_t end_layer() const { return options_.end_layer < 0 ? static_cast<int64_t>(model_.layers.size()) : options_.end_layer; }
  void plan(const SweepClient& client);
  void settle_plan();
  std::vector<Window> windows(int64_t depth) const;
  Needs measure(const SweepClient& client, int64_t depth) const;
  int64_t source_bytes(const layers::LayerSpec& layer) const;
  int64_t layer_bytes(const SweepClient& client, const layers::LayerSpec& layer, bool shares_only) const;
  int64_t scratch_bytes(int64_t tokens) const;
  void make_batches(int64_t micro_batch_tokens);

  // sweep.cpp
  HiddenStore open_store(bool spill) const;
  void embed();
  std::vector<LoadUnit> load_units(const SweepClient& client) const;

  // sweep_states.cpp
  /// `store`: nullptr on ranks that keep nothing. Collective over the world.
  void save(const HiddenStore* store, const std::string& path);
  /// Fills it. Throws a data Error for a file of another size.
  void load(HiddenStore& store, const std::string& path);
  /// Calls `move(offset of the bytes in the file, rows)` for every run of neighbouring tokens in this rank's share of micro-batch m,
  /// `states`.
  void for_runs(int64_t m, const Tensor& states, const std::function<void(int64_t, const Tensor&)>& move) const;

  // sweep_backward.cpp
  class Backward;

  // sweep_window.cpp
  void run_window(SweepClient& client, const std::vector<LayerTensors>& layers, ExpertSource& experts);
  void run_group(SweepClient& client, const std::vector<LayerTensors>& layers, const std::vector<layers::LayerWeights>& weights,
                 ExpertSource& experts, int64_t first_batch, std::vector<Tensor>& states);
  void run_experts(SweepClient& client, const layers::LayerSpec& layer, const layers::LayerWeights& weights, ExpertSource& experts,
                   layers::TokenGroup& group);
  void show_again(SweepClient& client, const ExpertChunk& chunk);
  /// The whole micro-batch's rows from those of this rank's share, in the buffer `name`. Collective over the tensor group.
  Tensor gather_rows(int64_t m, const Tensor& share, const std::string& name);
  Tensor gather_tokens(int64_t m, const Tensor& share);
  /// Indices of the micro-batch's share of tokens among all ranks' tokens, added to `positions`.
  void add_positions(int64_t m, std::vector<int64_t>& positions) const;
  parallel::Range token_share(int64_t m) const;

  const layers::ModelSpec& model_;
  const checkpoint::Reader& reader_;
  const parallel::Mesh& mesh_;
  TokenRows rows_;
  SweepOptions options_;
  std::vector<layers::Batch> batches_;
  std::vector<std::vector<int32_t>> batch_ids_;
  std::vector<Window> windows_;
  std::optional<HiddenStore> store_;
  std::optional<HiddenStore> gradients_;  ///< of this rank's share of every micro-batch, by what the next layer down made
  std::vector<HiddenStore> inputs_;       ///< of every layer, with keep_inputs
  layers::RopeTables rope_;
  layers::Workspace workspace_;
  Plan plan_;
  int64_t ahead_bytes_ = 0;                         ///< that the loader may read ahead
  int64_t longest_ = 1;                             ///< tokens of the longest row
  std::vector<std::vector<int64_t>> first_tokens_;  ///< by micro-batch: index of each row's first token among all ranks' tokens
  int64_t groups_ = 0;                              ///< of micro-batches; with experts the most that any rank has
  bool streams_experts_ = false;                    ///< some layer's experts come in several chunks
  bool spill_ = false, spills_inputs_ = false;
  std::map<int64_t, layers::TokenGroup> kept_groups_;  ///< by layer, of those whose tokens are shown again
};

}  // namespace ptq::runner
