#pragma once
// The streaming forward pass: windows of consecutive layers are read ahead, computed with all micro-batches and dropped; only hidden
// states stay. Pipeline ranks split each window; micro-batches flow through them and come back to the first as the next window's inputs.
// Hidden states are rounded to the store's dtype after every layer, so that neither windows nor pipeline ranks change a bit.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/reader.h"
#include "layers/layer.h"
#include "parallel/mesh.h"
#include "runner/hidden_store.h"
#include "runner/placement.h"
#include "runner/weight_loader.h"

namespace ptq::runner {

/// A layer's tensors on this rank: what it read, and what it computes with.
struct LayerTensors {
  const layers::LayerSpec* layer = nullptr;
  std::vector<layers::TensorSpec> specs;
  std::vector<Placement> placements;
  std::vector<Tensor> shares;            ///< rows this rank reads and owns
  std::map<std::string, Tensor> slices;  ///< rows it computes with; empty when the sweep computes nothing
};

/// What a sweep is for. Methods run on the main thread; only those that say so communicate.
class SweepClient {
 public:
  virtual ~SweepClient() = default;
  /// The tensors to read for a layer.
  virtual std::vector<layers::TensorSpec> tensors(const layers::LayerSpec& layer) const { return layer.tensors; }
  /// Bytes of the computed form of a layer per byte read (dequantized weights are larger than their codes).
  virtual double expansion() const { return 1.0; }
  /// Once per layer, before its forward: looks at the shares, may throw.
  virtual void loaded(const LayerTensors&) {}
  /// The slices as weights.
  virtual layers::LayerWeights weights(const LayerTensors& tensors) const;
  virtual layers::LayerHooks& hooks() = 0;
  /// What went wrong during the window's forward, if anything.
  virtual std::optional<Error> error() { return std::nullopt; }
  /// After a window: its layers on this rank, statistics complete. Every rank of the stage calls it; may communicate over the stage.
  virtual void window_done(const std::vector<LayerTensors>&) {}
};

struct SweepOptions {
  bool forward = true;           ///< false: read, loaded() and window_done() only
  DType operand = DType::kBF16;  ///< of matrix product inputs
  DType hidden = DType::kBF16;   ///< of the hidden states kept
  int64_t host_memory = 0;       ///< bytes this rank may use in all
  std::string scratch;           ///< folder for spilled hidden states
  int64_t micro_batch = 0;       ///< tokens computed at a time, unless one row is longer; 0: as many as memory allows
};

struct SweepProgress {
  int64_t layers_done = 0, layers = 0, tokens = 0;
  double seconds = 0, forward_seconds = 0, wait_seconds = 0;
  int64_t bytes_read = 0;
};

class Sweep {
 public:
  /// rows: this data rank's token rows; first_row their index among all. Throws a user Error when host_memory is too small.
  Sweep(const layers::ModelSpec& model, const checkpoint::Reader& reader, const parallel::Mesh& mesh,
        std::vector<std::vector<int32_t>> rows, int64_t first_row, SweepOptions options);

  /// Collective over the world. `on_window` is called on every rank after each window.
  void run(SweepClient& client, const std::function<void(const SweepProgress&)>& on_window);

  int64_t micro_batches() const { return static_cast<int64_t>(batches_.size()); }
  const layers::Batch& batch(int64_t m) const { return batches_[static_cast<size_t>(m)]; }
  /// After run, on pipeline rank 0: the final hidden states of micro-batch m (before the final norm), [T, H] f32. Collective over tensor.
  Tensor final_hidden(int64_t m);
  bool spilled() const { return store_ && store_->spilled(); }
  layers::Workspace& workspace() { return workspace_; }

 private:
  struct Window {
    std::vector<int64_t> boundaries;  ///< P+1 layer indices: stage p computes [boundaries[p], boundaries[p+1])
  };
  struct PendingOutput;

  /// What this rank's memory allows; local, may throw.
  void plan(const SweepClient& client);
  /// The plan all ranks share. Collective over the world.
  void settle_plan();
  int64_t source_bytes(const layers::LayerSpec& layer) const;
  void make_batches(int64_t micro_batch_tokens);
  void embed();
  LayerTensors take_layer(const SweepClient& client, WeightLoader& loader, int64_t layer) const;
  void assemble(LayerTensors& tensors) const;
  void run_window(const Window& window, SweepClient& client, const std::vector<LayerTensors>& layers);
  Tensor gather_tokens(int64_t m, const Tensor& share);
  parallel::Range token_share(int64_t m) const;
  int64_t layer_bytes(const SweepClient& client, const layers::LayerSpec& layer, bool shares_only) const;
  int64_t scratch_bytes(int64_t tokens) const;

  const layers::ModelSpec& model_;
  const checkpoint::Reader& reader_;
  const parallel::Mesh& mesh_;
  std::vector<std::vector<int32_t>> rows_;
  int64_t first_row_;
  SweepOptions options_;
  std::vector<layers::Batch> batches_;
  std::vector<std::vector<int32_t>> batch_ids_;
  std::vector<Window> windows_;
  std::optional<HiddenStore> store_;
  layers::RopeTables rope_;
  layers::Workspace workspace_;
  struct Plan {
    int64_t micro_batch = 0;  ///< tokens at most, unless one row is longer
    int64_t depth = 1;        ///< layers a stage of a window
    int64_t ahead_bytes = 0;  ///< of one layer read ahead
  } plan_;
  int64_t longest_ = 1;  ///< tokens of the longest row
  bool spill_ = false;
};

}  // namespace ptq::runner
