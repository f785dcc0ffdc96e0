#include "runner/sweep.h"

#include <algorithm>
#include <chrono>

#include "kernels/ops.h"
#include "parallel/stop.h"
#include "runner/embedding.h"
#include "runner/expert_source.h"

namespace ptq::runner {

using parallel::even_share;
using parallel::Range;

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Sweep::Sweep(const layers::ModelSpec& model, const checkpoint::Reader& reader, const parallel::Mesh& mesh, TokenRows rows,
             SweepOptions options)
    : model_(model), reader_(reader), mesh_(mesh), rows_(std::move(rows)), options_(std::move(options)) {}

TokenRows TokenRows::dealt(const std::vector<std::vector<int32_t>>& all, int64_t ranks, int64_t rank) {
  TokenRows mine{.first = rank, .step = ranks};
  for (const auto& row : all) mine.lengths.push_back(static_cast<int64_t>(row.size()));
  for (auto i = static_cast<size_t>(rank); i < all.size(); i += static_cast<size_t>(ranks)) mine.ids.push_back(all[i]);
  return mine;
}

TokenRows TokenRows::run(const std::vector<std::vector<int32_t>>& all, int64_t ranks, int64_t rank) {
  const Range share = even_share(static_cast<int64_t>(all.size()), ranks, rank);
  TokenRows mine{.ids = {all.begin() + share.begin, all.begin() + share.end}, .first = share.begin};
  for (const auto& row : all) mine.lengths.push_back(static_cast<int64_t>(row.size()));
  return mine;
}

HiddenStore Sweep::open_store(bool spill) const {
  std::vector<int64_t> counts;
  for (int64_t m = 0; m < micro_batches(); ++m) counts.push_back(token_share(m).size());
  return HiddenStore::open(counts, model_.hidden, options_.hidden, spill ? options_.scratch : "");
}

void Sweep::embed() {
  store_ = open_store(spill_);
  for (int64_t l = 0; options_.keep_inputs && l < end_layer(); ++l) inputs_.push_back(open_store(spills_inputs_));
  if (options_.first_layer > 0) return load(*store_, options_.hidden_states);
  // Some micro-batches at a time: the rows they look up lie in memory together.
  constexpr int64_t kRoom = int64_t{64} << 20;
  const checkpoint::TensorEntry& table = reader_.at(model_.embedding);
  for (int64_t begin = 0; begin < micro_batches();) {
    std::vector<std::vector<int32_t>> ids;
    for (int64_t bytes = 0; begin + static_cast<int64_t>(ids.size()) < micro_batches();) {
      const int64_t m = begin + static_cast<int64_t>(ids.size());
      bytes += token_share(m).size() * table.row_bytes();
      if (bytes > kRoom && !ids.empty()) break;
      const Range share = token_share(m);
      const auto& all = batch_ids_[static_cast<size_t>(m)];
      ids.emplace_back(all.begin() + share.begin, all.begin() + share.end);
    }
    look_up_embeddings(reader_, table, ids, options_.hidden, [&](int64_t m, const Tensor& states) { store_->store(begin + m, states); });
    begin += static_cast<int64_t>(ids.size());
  }
}

std::vector<LoadUnit> Sweep::load_units(const SweepClient& client) const {
  const auto stage = static_cast<size_t>(mesh_.pipeline_rank());
  std::vector<LoadUnit> units;
  for (const Window& window : windows_) {
    const auto first = window.boundaries[stage], last = window.boundaries[stage + 1];
    for (int64_t l = first; l < last; ++l) {
      const layers::LayerSpec& layer = model_.layers[static_cast<size_t>(l)];
      units.push_back(layer_unit(client, layer, reader_, mesh_));
    }
    // Then the experts in the order they are computed in, and once more where the layer's statistics come before their last sight.
    for (const bool again : {false, true})
      for (int64_t l = first; l < last; ++l) {
        const layers::LayerSpec& layer = model_.layers[static_cast<size_t>(l)];
        if (!layer.moe() || (again && !ExpertSource::reads_again(client, layer, plan_.experts, mesh_))) continue;
        const auto specs = group_by_expert(*layer.moe(), client.tensors(layer));
        for (const Range& chunk : cut_experts(static_cast<int64_t>(specs.size()), plan_.experts, mesh_))
          units.push_back(chunk_unit(place_chunk(layer, chunk, specs, mesh_), reader_));
      }
  }
  return units;
}

void Sweep::run(SweepClient& client, const std::function<void(const SweepProgress&)>& on_window) {
  const auto begin = std::chrono::steady_clock::now();
  require(!options_.keep_inputs || mesh_.shape().pipeline == 1, "inputs of layers are kept on meshes of one stage");
  parallel::Communicator& world = mesh_.world();
  world.together([&] { plan(client); });
  settle_plan();
  SweepProgress progress;
  progress.first_layer = progress.layers_done = options_.first_layer;
  progress.layers = end_layer();
  for (const auto& row : rows_.ids) progress.tokens += static_cast<int64_t>(row.size());

  world.together([&] {
    if (options_.forward && mesh_.pipeline_rank() == 0) embed();
  });
  const auto stage = static_cast<size_t>(mesh_.pipeline_rank());
  WeightLoader loader(reader_, load_units(client), ahead_bytes_);

  for (const Window& window : windows_) {
    std::vector<LayerTensors> layers;
    world.together([&] {
      for (int64_t l = window.boundaries[stage]; l < window.boundaries[stage + 1]; ++l) {
        layers.push_back(place_layer(client, model_.layers[static_cast<size_t>(l)], reader_, mesh_, loader.take()));
        client.loaded(layers.back());
      }
    });
    ExpertSource experts(client, loader, reader_, mesh_, plan_.experts, options_.forward);
    if (options_.forward) {
      const auto forward_begin = std::chrono::steady_clock::now();
      for (auto& layer : layers) assemble_layer(layer, reader_, mesh_, false);
      run_window(client, layers, experts);
      progress.forward_seconds += seconds_since(forward_begin);
    } else {
      for (auto& layer : layers) {
        if (client.needs_vectors(*layer.layer)) assemble_layer(layer, reader_, mesh_, true);
        if (layer.layer->moe()) experts.pass(*layer.layer);
      }
    }
    world.agree(experts.error() ? experts.error() : client.error());
    client.window_done(layers);
    for (const auto& layer : layers)
      if (layer.layer->moe()) experts.finish(*layer.layer, [&](const ExpertChunk& chunk) { show_again(client, chunk); });
    kept_groups_.clear();
    world.agree(experts.error());
    progress.layers_done = window.boundaries.back();
    progress.seconds = seconds_since(begin);
    progress.wait_seconds = loader.waited_seconds();
    progress.bytes_read = reader_.bytes_read();
    on_window(progress);
    parallel::stop_if_asked(world);
  }
}

}  // namespace ptq::runner
