#pragma once
// Hands the sweep a window's experts, chunk after chunk, as the loader brings them. Never throws between collectives: an error is kept, and
// the chunks after it are broken.

#include <map>

#include "runner/sweep.h"

namespace ptq::runner {

class Sweep::ExpertSource {
 public:
  ExpertSource(SweepClient& client, WeightLoader& loader, const checkpoint::Reader& reader, const parallel::Mesh& mesh, int64_t per_rank,
               bool forward)
      : client_(client), loader_(loader), reader_(reader), mesh_(mesh), per_rank_(per_rank), forward_(forward) {}

  /// Calls `use` with every chunk of the layer in order. A layer of one chunk may be asked for several times, one of more only once.
  /// Collective over the replicas.
  void each(const layers::LayerSpec& layer, const std::function<void(const ExpertChunk&)>& use);
  /// The layer's forward is over: the client sees the chunks that did not stay in memory for the last time as they pass, the others here,
  /// unless it wants the layer's statistics first.
  void forwarded(const layers::LayerSpec& layer);
  /// Without a forward pass: every chunk read, looked at and done.
  void pass(const layers::LayerSpec& layer);
  /// After window_done: the last sight of chunks that waited for it, from memory or read again.
  /// `show` is called with chunks that were read again, before the client is done with them. Collective over the stage where it is.
  void finish(const layers::LayerSpec& layer, const std::function<void(const ExpertChunk&)>& show);
  const std::optional<Error>& error() const { return error_; }

  /// Are the layer's chunks read twice?
  static bool reads_again(const SweepClient& client, const layers::LayerSpec& layer, int64_t per_rank, const parallel::Mesh& mesh);

 private:
  std::vector<parallel::Range> chunks(const layers::LayerSpec& layer) const;
  /// The chunk without its tensors; a layer's names are grouped once for all of its chunks.
  ExpertChunk place(const layers::LayerSpec& layer, parallel::Range experts);
  ExpertChunk take(const layers::LayerSpec& layer, parallel::Range experts);
  void done(const ExpertChunk& chunk);

  SweepClient& client_;
  WeightLoader& loader_;
  const checkpoint::Reader& reader_;
  const parallel::Mesh& mesh_;
  int64_t per_rank_;
  bool forward_;
  const layers::LayerSpec* grouped_ = nullptr;          ///< the layer whose tensors are in specs_
  std::vector<std::vector<layers::TensorSpec>> specs_;  ///< by expert
  std::map<int64_t, ExpertChunk> resident_;             ///< layer index -> its only chunk
  std::optional<Error> error_;
};

}  // namespace ptq::runner
