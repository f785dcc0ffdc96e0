#pragma once
// Routed experts on their way through memory: a layer's experts are cut into chunks of neighbours, each chunk over the expert ranks, each
// rank's part over the replicas that compute with the same experts. An expert is read, quantized and written whole by one rank.

#include <vector>

#include "checkpoint/reader.h"
#include "layers/model_spec.h"
#include "parallel/mesh.h"
#include "parallel/shard.h"
#include "runner/weight_loader.h"

namespace ptq::runner {

/// By expert, the tensors a sweep reads of it: `specs` without those that belong to no expert. Stacked tensors are in every entry.
std::vector<std::vector<layers::TensorSpec>> group_by_expert(const layers::MoeSpec& moe, const std::vector<layers::TensorSpec>& specs);

struct ExpertChunk {
  const layers::LayerSpec* layer = nullptr;
  parallel::Range experts;                             ///< of the chunk, over all ranks
  parallel::Range mine;                                ///< that this rank computes with
  parallel::Range owned;                               ///< that it reads and writes
  std::vector<std::vector<layers::TensorSpec>> specs;  ///< by expert - mine.begin
  /// The same order. Per expert [out, in], ..., stacked [1, in, out], ...; only those of owned experts until gather().
  std::vector<std::vector<Tensor>> tensors;
  bool broken = false;  ///< reading failed: no tensors

  const std::vector<Tensor>& of(int64_t expert) const { return tensors[static_cast<size_t>(expert - mine.begin)]; }
  const std::vector<layers::TensorSpec>& specs_of(int64_t expert) const { return specs[static_cast<size_t>(expert - mine.begin)]; }
};

/// The chunks of `experts` experts when each expert rank holds at most `per_rank` at a time; ascending.
std::vector<parallel::Range> cut_experts(int64_t experts, int64_t per_rank, const parallel::Mesh& mesh);

/// A chunk without its tensors: who has which experts.
ExpertChunk place_chunk(const layers::LayerSpec& layer, parallel::Range experts, const std::vector<std::vector<layers::TensorSpec>>& specs,
                        const parallel::Mesh& mesh);
/// What this rank reads of it, expert by expert.
LoadUnit chunk_unit(const ExpertChunk& chunk, const checkpoint::Reader& reader);
/// Puts the tensors of chunk_unit in their places.
void fill_chunk(ExpertChunk& chunk, std::vector<Tensor> tensors);
/// Gives every replica all of `mine`. Collective over the replicas, also for a broken chunk.
void gather_chunk(ExpertChunk& chunk, const checkpoint::Reader& reader, const parallel::Mesh& mesh);

/// Bytes of one expert's tensors, as read.
int64_t expert_bytes(const std::vector<layers::TensorSpec>& specs, const checkpoint::Reader& reader);

}  // namespace ptq::runner
