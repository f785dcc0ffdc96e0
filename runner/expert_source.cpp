#include "runner/expert_source.h"

#include "runner/kept_error.h"

namespace ptq::runner {

using parallel::Range;

std::vector<Range> Sweep::ExpertSource::chunks(const layers::LayerSpec& layer) const {
  return cut_experts(static_cast<int64_t>(layer.moe()->experts.size()), per_rank_, mesh_);
}

bool Sweep::ExpertSource::reads_again(const SweepClient& client, const layers::LayerSpec& layer, int64_t per_rank,
                                      const parallel::Mesh& mesh) {
  return client.needs_layer_first(layer) && cut_experts(static_cast<int64_t>(layer.moe()->experts.size()), per_rank, mesh).size() > 1;
}

ExpertChunk Sweep::ExpertSource::place(const layers::LayerSpec& layer, Range experts) {
  if (grouped_ != &layer) specs_ = group_by_expert(*layer.moe(), client_.tensors(layer));
  grouped_ = &layer;
  return place_chunk(layer, experts, specs_, mesh_);
}

ExpertChunk Sweep::ExpertSource::take(const layers::LayerSpec& layer, Range experts) {
  ExpertChunk chunk = place(layer, experts);
  keep_error(error_, [&] {
    fill_chunk(chunk, loader_.take());
    client_.experts_loaded(chunk);
  });
  chunk.broken = error_.has_value();
  if (forward_) gather_chunk(chunk, reader_, mesh_);
  return chunk;
}

void Sweep::ExpertSource::each(const layers::LayerSpec& layer, const std::function<void(const ExpertChunk&)>& use) {
  const std::vector<Range> all = chunks(layer);
  if (all.size() == 1) {
    if (!resident_.count(layer.index)) resident_.emplace(layer.index, take(layer, all.front()));
    use(resident_.at(layer.index));
    return;
  }
  for (const Range& experts : all) {
    const ExpertChunk chunk = take(layer, experts);
    use(chunk);
    client_.experts_forwarded(chunk, false);
    if (!client_.needs_layer_first(layer)) done(chunk);
  }
}

void Sweep::ExpertSource::done(const ExpertChunk& chunk) {
  if (!chunk.broken) keep_error(error_, [&] { client_.experts_done(chunk); });
}

void Sweep::ExpertSource::forwarded(const layers::LayerSpec& layer) {
  const auto chunk = resident_.find(layer.index);
  if (chunk == resident_.end()) return;
  client_.experts_forwarded(chunk->second, true);
  if (client_.needs_layer_first(layer)) return;
  done(chunk->second);
  resident_.erase(chunk);
}

void Sweep::ExpertSource::pass(const layers::LayerSpec& layer) {
  each(layer, [](const ExpertChunk&) {});
  forwarded(layer);
}

void Sweep::ExpertSource::finish(const layers::LayerSpec& layer, const std::function<void(const ExpertChunk&)>& show) {
  if (!client_.needs_layer_first(layer)) return;
  if (const auto chunk = resident_.find(layer.index); chunk != resident_.end()) {
    done(chunk->second);
    resident_.erase(chunk);
    return;
  }
  for (const Range& experts : chunks(layer)) {
    ExpertChunk chunk = place(layer, experts);
    keep_error(error_, [&] { fill_chunk(chunk, loader_.take()); });
    chunk.broken = error_.has_value();
    if (forward_ && client_.shows_tokens_again(layer)) {
      gather_chunk(chunk, reader_, mesh_);
      show(chunk);
    }
    done(chunk);
  }
}

}  // namespace ptq::runner
