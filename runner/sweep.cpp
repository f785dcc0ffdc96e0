#include "runner/sweep.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <numeric>

#include "kernels/ops.h"
#include "runner/embedding.h"
#include "runner/machine.h"

namespace ptq::runner {

using parallel::even_share;
using parallel::Range;

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Codes and pieces that may wait for the writer; the sweep leaves this much room for them.
constexpr int64_t kWriterRoom = int64_t{16} << 20;

int64_t dim0(const checkpoint::TensorEntry& entry) { return entry.shape.empty() ? 1 : entry.shape[0]; }

}  // namespace

layers::LayerWeights SweepClient::weights(const LayerTensors& tensors) const {
  layers::LayerWeights weights;
  weights.linears.resize(tensors.layer->linears.size());
  for (const auto& spec : tensors.specs) {
    const Tensor& slice = tensors.slices.at(spec.name);
    if (spec.linear < 0) {
      weights.vectors[spec.name] = slice;
      continue;
    }
    auto& linear = weights.linears[static_cast<size_t>(spec.linear)];
    (spec.shape.size() == 2 ? linear.weight : linear.bias) = slice;
  }
  return weights;
}

Sweep::Sweep(const layers::ModelSpec& model, const checkpoint::Reader& reader, const parallel::Mesh& mesh,
             std::vector<std::vector<int32_t>> rows, int64_t first_row, SweepOptions options)
    : model_(model), reader_(reader), mesh_(mesh), rows_(std::move(rows)), first_row_(first_row), options_(std::move(options)) {}

int64_t Sweep::layer_bytes(const SweepClient& client, const layers::LayerSpec& layer, bool shares_only) const {
  double bytes = 0;
  for (const auto& spec : client.tensors(layer)) {
    const checkpoint::TensorEntry& entry = reader_.at(spec.name);
    const Placement placement = place(layer, spec, dim0(entry), mesh_);
    const double row = dim0(entry) > 0 ? static_cast<double>(entry.bytes) / static_cast<double>(dim0(entry)) : 0;
    const bool gathered = placement.shares.size() > 1;
    bytes += row * static_cast<double>(placement.share.size());
    if (!shares_only && options_.forward && (gathered || client.expansion() > 1))
      bytes += row * client.expansion() * static_cast<double>(placement.slice.size());
  }
  return static_cast<int64_t>(bytes);
}

int64_t Sweep::scratch_bytes(int64_t tokens) const {
  const int64_t ranks = mesh_.shape().tensor, operand = dtype_bytes(options_.operand);
  int64_t widest = 0;
  for (const auto& layer : model_.layers) {
    int64_t local = 0, whole = 0;  // every linear's output has a buffer of its own; inputs wider than H are gathered
    for (const auto& linear : layer.linears) {
      local += linear.out / ranks * 4;
      whole = std::max(whole, linear.in);
    }
    widest = std::max(widest, local + whole * operand * (ranks > 1 ? 3 : 1));
  }
  return tokens * (widest + model_.hidden * (4 + operand + 2 * dtype_bytes(options_.hidden)));
}

void Sweep::plan(const SweepClient& client) {
  int64_t tokens = 0, longest = 1;
  for (const auto& row : rows_) {
    tokens += static_cast<int64_t>(row.size());
    longest = std::max(longest, static_cast<int64_t>(row.size()));
  }
  int64_t largest_now = 0, largest_next = 0;
  for (const auto& layer : model_.layers) {
    largest_now = std::max(largest_now, layer_bytes(client, layer, false));
    largest_next = std::max(largest_next, layer_bytes(client, layer, true));
  }
  const int64_t base = resident_bytes() + kWriterRoom;
  const int64_t hidden = options_.forward ? (tokens / mesh_.shape().tensor + 1) * model_.hidden * dtype_bytes(options_.hidden) : 0;

  // The largest micro-batch that leaves room for two layers; the hidden states stay in memory if they fit beside all that.
  int64_t micro_batch = 0, needed = 0;
  for (const int64_t candidate : {int64_t{1024}, int64_t{512}, longest}) {
    micro_batch = std::max(options_.micro_batch > 0 ? options_.micro_batch : candidate, longest);
    needed = base + largest_now + largest_next + (options_.forward ? scratch_bytes(std::min(micro_batch, tokens)) : 0);
    if (needed + hidden <= options_.host_memory) break;
  }
  if (needed > options_.host_memory)
    throw user_error("memory.host = " + human_bytes(static_cast<double>(options_.host_memory)) + " is too small: this rank needs " +
                         human_bytes(static_cast<double>(needed)) + " for two layers and one micro-batch",
                     "memory.host", "raise it, use more tensor ranks, or shorten calibration.sequence_length");
  spill_ = needed + hidden > options_.host_memory;
  // More layers than one a stage only pay where they save passes over the spill file.
  const int64_t spare = (options_.host_memory - needed) / std::max<int64_t>(1, largest_now + largest_next);
  plan_ = {micro_batch, spill_ ? 1 + std::max<int64_t>(0, spare) : 1, largest_next};
  longest_ = longest;
}

void Sweep::settle_plan() {
  // Ranks that exchange micro-batches must cut them alike, and all walk through the same windows: the most modest wish holds.
  int64_t wishes[2] = {-plan_.micro_batch, -plan_.depth};
  mesh_.world().all_reduce_max(std::span<int64_t>(wishes));
  plan_.micro_batch = -wishes[0];
  plan_.depth = -wishes[1];

  const auto layers = static_cast<int64_t>(model_.layers.size());
  const int64_t stages = mesh_.shape().pipeline;
  for (int64_t begin = 0; begin < layers; begin += stages * plan_.depth) {
    const int64_t end = std::min(layers, begin + stages * plan_.depth);
    std::vector<int64_t> bytes;
    for (int64_t l = begin; l < end; ++l) bytes.push_back(source_bytes(model_.layers[static_cast<size_t>(l)]));
    Window window;
    window.boundaries = parallel::balanced_runs(bytes, stages);
    for (int64_t& boundary : window.boundaries) boundary += begin;
    windows_.push_back(std::move(window));
  }
  if (!options_.forward) return;
  make_batches(plan_.micro_batch);
  rope_ = layers::make_rope_tables(model_.rope, longest_);
}

int64_t Sweep::source_bytes(const layers::LayerSpec& layer) const {
  int64_t bytes = 1;  // a layer without tensors still counts as a step
  for (const auto& spec : layer.tensors)
    if (const auto* entry = reader_.find(spec.name)) bytes += entry->bytes;
  return bytes;
}

void Sweep::make_batches(int64_t micro_batch_tokens) {
  std::vector<int64_t> lengths;
  std::vector<int32_t> ids;
  int64_t first = first_row_;
  const auto close = [&] {
    if (lengths.empty()) return;
    batches_.push_back(layers::make_batch(first, lengths));
    batch_ids_.push_back(std::move(ids));
    first += static_cast<int64_t>(lengths.size());
    lengths.clear();
    ids.clear();
  };
  for (const auto& row : rows_) {
    if (static_cast<int64_t>(ids.size() + row.size()) > micro_batch_tokens) close();
    lengths.push_back(static_cast<int64_t>(row.size()));
    ids.insert(ids.end(), row.begin(), row.end());
  }
  close();
}

Range Sweep::token_share(int64_t m) const {
  return even_share(batches_[static_cast<size_t>(m)].tokens(), mesh_.shape().tensor, mesh_.tensor_rank());
}

void Sweep::embed() {
  std::vector<int64_t> counts;
  for (int64_t m = 0; m < micro_batches(); ++m) counts.push_back(token_share(m).size());
  store_ = HiddenStore::open(counts, model_.hidden, options_.hidden, spill_ ? options_.scratch : "");
  // Some micro-batches at a time: the rows they look up lie in memory together.
  constexpr int64_t kRoom = int64_t{64} << 20;
  const checkpoint::TensorEntry& table = reader_.at(model_.embedding);
  for (int64_t begin = 0; begin < micro_batches();) {
    std::vector<std::vector<int32_t>> ids;
    for (int64_t bytes = 0; begin + static_cast<int64_t>(ids.size()) < micro_batches();) {
      const int64_t m = begin + static_cast<int64_t>(ids.size());
      bytes += counts[static_cast<size_t>(m)] * table.row_bytes();
      if (bytes > kRoom && !ids.empty()) break;
      const Range share = token_share(m);
      const auto& all = batch_ids_[static_cast<size_t>(m)];
      ids.emplace_back(all.begin() + share.begin, all.begin() + share.end);
    }
    look_up_embeddings(reader_, table, ids, options_.hidden, [&](int64_t m, const Tensor& states) { store_->store(begin + m, states); });
    begin += static_cast<int64_t>(ids.size());
  }
}

LayerTensors Sweep::take_layer(const SweepClient& client, WeightLoader& loader, int64_t layer) const {
  LayerTensors tensors;
  tensors.layer = &model_.layers[static_cast<size_t>(layer)];
  tensors.specs = client.tensors(*tensors.layer);
  tensors.shares = loader.take();
  for (const auto& spec : tensors.specs) tensors.placements.push_back(place(*tensors.layer, spec, dim0(reader_.at(spec.name)), mesh_));
  return tensors;
}

void Sweep::assemble(LayerTensors& tensors) const {
  for (size_t i = 0; i < tensors.specs.size(); ++i) {
    const Placement& placement = tensors.placements[i];
    const Tensor& share = tensors.shares[i];
    Tensor slice = share;
    if (placement.shares.size() > 1) {
      const int64_t rows = std::accumulate(placement.shares.begin(), placement.shares.end(), int64_t{0});
      const checkpoint::TensorEntry& entry = reader_.at(tensors.specs[i].name);
      const int64_t row_bytes = dim0(entry) > 0 ? entry.bytes / dim0(entry) : 0;
      Shape shape = entry.shape;
      if (!shape.empty()) shape[0] = rows;
      slice = Tensor::empty(shape, entry.dtype);
      std::vector<int64_t> bytes;
      for (const int64_t count : placement.shares) bytes.push_back(count * row_bytes);
      (placement.over_stage ? mesh_.stage() : mesh_.data()).all_gather(share.raw(), bytes, slice.raw());
      if (placement.over_stage && placement.slice.size() != rows) slice = slice.rows(placement.slice.begin, placement.slice.end);
    }
    tensors.slices[tensors.specs[i].name] = slice;
  }
}

Tensor Sweep::gather_tokens(int64_t m, const Tensor& share) {
  const int64_t tokens = batches_[static_cast<size_t>(m)].tokens(), ranks = mesh_.shape().tensor;
  Tensor whole = share;
  if (ranks > 1) {
    whole = workspace_.get("tokens", {tokens, model_.hidden}, options_.hidden);
    std::vector<int64_t> bytes;
    for (int64_t r = 0; r < ranks; ++r) bytes.push_back(even_share(tokens, ranks, r).size() * model_.hidden * dtype_bytes(options_.hidden));
    mesh_.tensor().all_gather(share.raw(), bytes, whole.raw());
  }
  Tensor hidden = workspace_.get("hidden", {tokens, model_.hidden}, DType::kF32);
  kernels::convert(whole, hidden);
  return hidden;
}

Tensor Sweep::final_hidden(int64_t m) {
  const Range share = token_share(m);
  return gather_tokens(m, store_->load(m, workspace_.get("share", {share.size(), model_.hidden}, options_.hidden)));
}

/// An output of the last stage on its way to the first one's store.
struct Sweep::PendingOutput {
  int64_t micro_batch;
  Tensor buffer;
  std::unique_ptr<parallel::Transfer> transfer;
};

void Sweep::run_window(const Window& window, SweepClient& client, const std::vector<LayerTensors>& layers) {
  const int stage = mesh_.pipeline_rank(), stages = mesh_.shape().pipeline;
  const bool is_first = stage == 0, is_last = stage == stages - 1;
  constexpr int kForward = 1, kReturn = 2;
  parallel::Communicator& pipeline = mesh_.pipeline();
  std::vector<layers::LayerWeights> weights;
  for (const auto& layer : layers) weights.push_back(client.weights(layer));
  require(static_cast<int64_t>(layers.size()) ==
              window.boundaries[static_cast<size_t>(stage) + 1] - window.boundaries[static_cast<size_t>(stage)],
          "a stage without its layers");
  const layers::ForwardContext context{options_.operand, &rope_, model_.rope.rotary_dim, &mesh_.tensor(), &client.hooks(), &workspace_};

  std::deque<PendingOutput> returning;  // first stage: outputs of the last one still on their way
  const auto keep_oldest = [&] {
    returning.front().transfer->wait();
    store_->store(returning.front().micro_batch, returning.front().buffer);
    returning.pop_front();
  };
  std::deque<PendingOutput> sending;
  for (int64_t m = 0; m < micro_batches(); ++m) {
    const Range share = token_share(m);
    const Shape share_shape{share.size(), model_.hidden};
    Tensor input = workspace_.get("share", share_shape, options_.hidden);
    if (is_first)
      input = store_->load(m, input);
    else
      pipeline.receive(input.raw(), input.bytes(), stage - 1, kForward)->wait();

    Tensor hidden = gather_tokens(m, input);
    Tensor rounded = workspace_.get("rounded", hidden.shape(), options_.hidden);
    if (layers.empty()) kernels::convert(hidden, rounded);
    for (size_t i = 0; i < layers.size(); ++i) {
      layers::forward_layer(*layers[i].layer, weights[i], batches_[static_cast<size_t>(m)], context, hidden);
      kernels::convert(hidden, rounded);
      if (i + 1 < layers.size()) kernels::convert(rounded, hidden);
    }
    const Tensor output = rounded.rows(share.begin, share.end);

    if (is_first && is_last) {
      store_->store(m, output);
    } else {
      if (sending.size() == 2) {
        sending.front().transfer->wait();
        sending.pop_front();
      }
      PendingOutput out{m, workspace_.get("send" + std::to_string(m % 2), share_shape, options_.hidden), nullptr};
      std::copy(output.raw(), output.raw() + output.bytes(), out.buffer.raw());
      out.transfer = pipeline.send(out.buffer.raw(), out.buffer.bytes(), is_last ? 0 : stage + 1, is_last ? kReturn : kForward);
      sending.push_back(std::move(out));
    }
    if (is_first && !is_last) {
      if (returning.size() == static_cast<size_t>(stages) + 1) keep_oldest();
      PendingOutput back{m, Tensor::empty(share_shape, options_.hidden), nullptr};
      back.transfer = pipeline.receive(back.buffer.raw(), back.buffer.bytes(), stages - 1, kReturn);
      returning.push_back(std::move(back));
    }
  }
  for (auto& out : sending) out.transfer->wait();
  while (!returning.empty()) keep_oldest();
}

void Sweep::run(SweepClient& client, const std::function<void(const SweepProgress&)>& on_window) {
  const auto begin = std::chrono::steady_clock::now();
  parallel::Communicator& world = mesh_.world();
  world.together([&] { plan(client); });
  settle_plan();
  SweepProgress progress;
  progress.layers = static_cast<int64_t>(model_.layers.size());
  for (const auto& row : rows_) progress.tokens += static_cast<int64_t>(row.size());

  world.together([&] {
    if (options_.forward && mesh_.pipeline_rank() == 0) embed();
  });
  const auto stage = static_cast<size_t>(mesh_.pipeline_rank());
  std::vector<LoadUnit> units;
  for (const Window& window : windows_)
    for (int64_t l = window.boundaries[stage]; l < window.boundaries[stage + 1]; ++l) {
      const layers::LayerSpec& layer = model_.layers[static_cast<size_t>(l)];
      LoadUnit unit;
      for (const auto& spec : client.tensors(layer)) {
        const checkpoint::TensorEntry& entry = reader_.at(spec.name);
        unit.push_back({&entry, place(layer, spec, dim0(entry), mesh_).share});
      }
      units.push_back(std::move(unit));
    }
  WeightLoader loader(reader_, std::move(units), plan_.depth * plan_.ahead_bytes);

  for (const Window& window : windows_) {
    std::vector<LayerTensors> layers;
    world.together([&] {
      for (int64_t l = window.boundaries[stage]; l < window.boundaries[stage + 1]; ++l) {
        layers.push_back(take_layer(client, loader, l));
        client.loaded(layers.back());
      }
    });
    if (options_.forward) {
      const auto forward_begin = std::chrono::steady_clock::now();
      for (auto& layer : layers) assemble(layer);
      run_window(window, client, layers);
      progress.forward_seconds += seconds_since(forward_begin);
    }
    world.agree(client.error());
    client.window_done(layers);
    progress.layers_done = window.boundaries.back();
    progress.seconds = seconds_since(begin);
    progress.wait_seconds = loader.waited_seconds();
    progress.bytes_read = reader_.bytes_read();
    on_window(progress);
  }
}

}  // namespace ptq::runner
