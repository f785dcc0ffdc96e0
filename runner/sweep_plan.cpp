// How much a sweep holds in memory at once: micro-batch, window and experts chosen so that a rank stays under its budget.

#include "runner/sweep_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "runner/machine.h"
#include "runner/sweep.h"

namespace ptq::runner {

using parallel::even_share;

namespace {

/// Codes and pieces that may wait for the writer; the sweep leaves this much room for them.
constexpr int64_t kWriterRoom = int64_t{16} << 20;
/// Chunks larger than this would only keep the reader from working ahead in small steps.
constexpr int64_t kChunkBytes = int64_t{1} << 30;

int64_t most_experts(const layers::ModelSpec& model) {
  int64_t most = 0;
  for (const auto& layer : model.layers)
    if (const auto* moe = layer.moe()) most = std::max(most, static_cast<int64_t>(moe->experts.size()));
  return most;
}

}  // namespace

std::vector<Window> cut_windows(const std::vector<int64_t>& bytes, int64_t stages, int64_t depth) {
  const auto layers = static_cast<int64_t>(bytes.size());
  const int64_t most = bytes.empty() ? 0 : depth * *std::max_element(bytes.begin(), bytes.end());
  const auto cut = [&](int64_t begin, int64_t end) {
    std::vector<int64_t> boundaries = parallel::balanced_runs({bytes.begin() + begin, bytes.begin() + end}, stages);
    for (int64_t& boundary : boundaries) boundary += begin;
    return boundaries;
  };
  const auto fits = [&](const std::vector<int64_t>& boundaries) {
    for (size_t p = 0; p + 1 < boundaries.size(); ++p) {
      int64_t sum = 0;
      for (int64_t l = boundaries[p]; l < boundaries[p + 1]; ++l) sum += bytes[static_cast<size_t>(l)];
      if (sum > most) return false;
    }
    return true;
  };
  std::vector<Window> windows;
  for (int64_t begin = 0; begin < layers;) {
    int64_t end = std::min(layers, begin + stages);
    std::vector<int64_t> boundaries = cut(begin, end);
    while (end < layers) {
      std::vector<int64_t> longer = cut(begin, end + 1);
      if (!fits(longer)) break;
      boundaries = std::move(longer);
      ++end;
    }
    windows.push_back({std::move(boundaries)});
    begin = end;
  }
  return windows;
}

struct Sweep::Needs {
  int64_t base = 0;                    ///< what the process holds already, and the writer's queue
  int64_t dense = 0, dense_ahead = 0;  ///< largest part of a window, largest layer read ahead
  int64_t expert = 0;                  ///< one expert
  int64_t expert_temporary = 0;        ///< one expert in the form it is computed in, where that is a copy
  int64_t tokens = 0;                  ///< of this rank's rows
  int64_t hidden = 0;                  ///< hidden states, kept in memory
  int64_t token_in_group = 0;          ///< bytes of a token that waits for its experts
};

int64_t Sweep::source_bytes(const layers::LayerSpec& layer) const {
  int64_t bytes = 1;  // a layer without tensors still counts as a step
  for (const auto& spec : layer.tensors)
    if (const auto* entry = reader_.find(spec.name)) bytes += entry->bytes;
  return bytes;
}

int64_t Sweep::layer_bytes(const SweepClient& client, const layers::LayerSpec& layer, bool shares_only) const {
  double bytes = 0;
  for (const auto& spec : client.tensors(layer)) {
    if (spec.expert != layers::kNoExpert) continue;
    const checkpoint::TensorEntry& entry = reader_.at(spec.name);
    const Placement placement = place(layer, spec, entry.rows(), mesh_, client.row_unit(layer, spec));
    const auto row = static_cast<double>(entry.row_bytes());
    const bool gathered = placement.shares.size() > 1;
    bytes += row * static_cast<double>(placement.share.size());
    if (!shares_only && options_.forward && (gathered || client.expansion() > 1))
      bytes += row * client.expansion() * static_cast<double>(placement.slice.size());
  }
  return static_cast<int64_t>(bytes);
}

int64_t Sweep::scratch_bytes(int64_t tokens) const {
  const int64_t ranks = mesh_.shape().tensor, operand = dtype_bytes(options_.operand);
  int64_t widest = 0, experts = 0;
  for (const auto& layer : model_.layers) {
    int64_t local = 0, whole = 0;  // every linear's output has a buffer of its own; inputs wider than H are gathered
    for (const auto& linear : layer.linears) {
      if (linear.is_routed()) continue;
      local += linear.out / ranks * 4;
      whole = std::max(whole, linear.in);
    }
    for (const auto& block : layer.blocks)
      if (const auto* latent = std::get_if<layers::LatentAttentionSpec>(&block.body)) {
        // The latents are whole on every rank, and keys and values expanded.
        local += (latent->latent + latent->rot) * 8 + latent->heads / ranks * (latent->head_dim + latent->v_head_dim) * 4;
        if (latent->q_a >= 0) local += layer.linears[static_cast<size_t>(latent->q_a)].out * 8;
      }
    widest = std::max(widest, local + whole * operand * (ranks > 1 ? 3 : 1));
    if (const auto* moe = layer.moe())
      experts =
          std::max(experts, layers::expert_scratch_bytes(*moe, model_.hidden, options_.operand, mesh_.shape().expert, kExchangeTokens));
  }
  // The way back keeps what the forward pass made, and has a gradient for each.
  const int64_t passes = options_.keep_inputs ? 3 : 1;
  return passes * (tokens * (widest + model_.hidden * (4 + operand + 2 * dtype_bytes(options_.hidden))) + experts);
}

std::vector<Window> Sweep::windows(int64_t depth) const {
  std::vector<int64_t> bytes;
  for (int64_t l = options_.first_layer; l < end_layer(); ++l) bytes.push_back(source_bytes(model_.layers[static_cast<size_t>(l)]));
  std::vector<Window> windows = cut_windows(bytes, mesh_.shape().pipeline, depth);
  for (Window& window : windows)
    for (int64_t& boundary : window.boundaries) boundary += options_.first_layer;
  return windows;
}

Sweep::Needs Sweep::measure(const SweepClient& client, int64_t depth) const {
  Needs needs;
  needs.base = resident_bytes() + kWriterRoom;
  for (const auto& row : rows_.ids) needs.tokens += static_cast<int64_t>(row.size());
  std::vector<int64_t> now;
  for (const auto& layer : model_.layers) {
    now.push_back(layer_bytes(client, layer, false) +
                  (options_.forward || client.needs_vectors(layer) ? client.statistics_bytes(layer) : 0));
    needs.dense_ahead = std::max(needs.dense_ahead, layer_bytes(client, layer, true));
    const auto* moe = layer.moe();
    if (!moe) continue;
    const auto specs = group_by_expert(*moe, client.tensors(layer));
    needs.expert = std::max(needs.expert, expert_bytes(specs.front(), reader_));
    const bool stacked = layer.linears[static_cast<size_t>(moe->experts.front().down)].is_stacked();
    if (options_.forward && (stacked || client.expansion() > 1))
      needs.expert_temporary = static_cast<int64_t>(static_cast<double>(needs.expert) * (client.expansion() + (stacked ? 1 : 0)));
  }
  for (const Window& window : windows(depth))
    for (size_t p = 0; p + 1 < window.boundaries.size(); ++p) {
      int64_t sum = 0;
      for (int64_t l = window.boundaries[p]; l < window.boundaries[p + 1]; ++l) sum += now[static_cast<size_t>(l)];
      needs.dense = std::max(needs.dense, sum);
    }
  const int64_t word = dtype_bytes(options_.hidden);
  if (options_.forward) needs.hidden = (needs.tokens / mesh_.shape().tensor + 1) * model_.hidden * word;
  int64_t top_k = 0, wide = model_.hidden;
  for (const auto& layer : model_.layers)
    if (const auto* moe = layer.moe()) {
      top_k = std::max(top_k, moe->router.top_k);
      wide = std::max(wide, moe->intermediate);
    }
  needs.token_in_group = model_.hidden * (4 + dtype_bytes(options_.operand) + word) + 8 + top_k * (24 + client.visit_bytes());
  // One expert may get every token, and weights them in f32.
  if (client.keeps_expert_tokens()) needs.token_in_group += model_.hidden * dtype_bytes(options_.operand) + wide * 4;
  return needs;
}

void Sweep::plan(const SweepClient& client) {
  for (const int64_t length : rows_.lengths) longest_ = std::max(longest_, length);
  const int64_t all = most_experts(model_), ranks = mesh_.shape().expert, replicas = mesh_.replicas().size();
  const int64_t most = (all + ranks - 1) / ranks;  // experts a rank has of a layer
  const bool all_fit = options_.experts_in_memory == 0 || options_.experts_in_memory >= most;
  constexpr int64_t kAllBatches = std::numeric_limits<int32_t>::max();
  const std::vector<int64_t> groups =
      client.forces_visits() || client.keeps_expert_tokens() ? std::vector<int64_t>{kAllBatches} : std::vector<int64_t>{16, 8, 4, 2, 1};

  // Windows of several layers a stage keep pipeline ranks evenly busy; one layer a stage needs the least memory.
  std::vector<Needs> needs;
  if (mesh_.shape().pipeline > 1) needs.push_back(measure(client, 1));
  needs.push_back(measure(client, 0));
  const auto ahead = [&](const Needs& need, int64_t experts) {
    return std::max(need.dense_ahead, (experts + replicas - 1) / replicas * need.expert);
  };
  const auto total = [&](const Needs& need, int64_t micro_batch, int64_t experts, int64_t group) {
    const int64_t waiting = group == kAllBatches ? need.tokens : std::min(need.tokens, group * micro_batch);
    int64_t bytes = need.base + need.dense + ahead(need, experts) + experts * need.expert * (replicas > 1 ? 2 : 1) + need.expert_temporary;
    if (options_.forward) bytes += scratch_bytes(std::min(micro_batch, need.tokens));
    if (options_.forward && all > 0) bytes += (waiting / mesh_.shape().tensor + 1) * need.token_in_group;
    return bytes;
  };
  int64_t least = std::numeric_limits<int64_t>::max(), needed = 0;
  const auto take = [&](const Needs& need, const Plan& plan, int64_t budget) {
    needed = total(need, plan.micro_batch, plan.experts, plan.group);
    least = std::min(least, needed);
    if (needed > budget) return false;
    plan_ = plan;
    ahead_bytes_ = ahead(need, plan.experts);
    return true;
  };
  const auto choose = [&](bool spill, bool spills_inputs) {
    spill_ = spill;
    spills_inputs_ = spills_inputs;
    for (const Needs& need : needs) {
      const int64_t depth = &need == &needs.back() ? 0 : 1;
      const int64_t inputs = options_.keep_inputs && !spills_inputs ? need.hidden * static_cast<int64_t>(model_.layers.size()) : 0;
      const int64_t budget = options_.host_memory - (spill ? 0 : need.hidden) - inputs;
      for (const int64_t candidate : {int64_t{1024}, int64_t{512}, longest_}) {
        const int64_t micro_batch = std::max(options_.micro_batch > 0 ? options_.micro_batch : candidate, longest_);
        if (all == 0 && take(need, {micro_batch, depth, 0, 1}, budget)) return true;
        for (const int64_t group : groups)
          if (all > 0 && all_fit && take(need, {micro_batch, depth, most, group}, budget)) return true;
      }
      // Not all of a layer's experts fit: as many as do, and all tokens go through them together.
      const int64_t micro_batch = std::max(options_.micro_batch > 0 ? options_.micro_batch : int64_t{512}, longest_);
      const int64_t wanted =
          std::min(most, options_.experts_in_memory > 0 ? options_.experts_in_memory : kChunkBytes / std::max<int64_t>(1, need.expert));
      for (int64_t experts = std::max<int64_t>(1, wanted); all > 0 && experts >= 1; --experts)
        if (take(need, {micro_batch, depth, experts, kAllBatches}, budget)) return true;
    }
    return false;
  };
  if (!choose(false, false) && !(options_.keep_inputs && choose(false, true))) {
    if (!choose(true, true))
      throw user_error("memory.host = " + human_bytes(static_cast<double>(options_.host_memory)) + " is too small: this rank needs " +
                           human_bytes(static_cast<double>(least)) +
                           (all > 0 ? " for one layer, one expert and the tokens that wait for it" : " for two layers and one micro-batch"),
                       "memory.host", "raise it, use more tensor ranks, or shorten calibration.sequence_length");
  }
  // More layers than that only pay where they save passes over the spill file.
  const int64_t spare = (options_.host_memory - needed) / std::max<int64_t>(1, needs.back().dense + ahead_bytes_);
  if (spill_ && all == 0 && spare > 0) plan_.depth = 1 + spare;
}

void Sweep::settle_plan() {
  // Ranks that exchange micro-batches must cut them alike, and all walk through the same windows and chunks: the most modest wish holds.
  int64_t wishes[4] = {-plan_.micro_batch, -plan_.depth, -plan_.experts, -plan_.group};
  mesh_.world().all_reduce_max(std::span<int64_t>(wishes));
  plan_ = {-wishes[0], -wishes[1], -wishes[2], -wishes[3]};
  ahead_bytes_ *= std::max<int64_t>(1, plan_.depth);
  const int64_t all = most_experts(model_);
  streams_experts_ = plan_.experts * mesh_.shape().expert < all;
  windows_ = windows(plan_.depth);
  if (!options_.forward) return;
  make_batches(plan_.micro_batch);
  // An expert that leaves memory does not come back for later tokens: they go through it together.
  plan_.group = streams_experts_ ? std::max<int64_t>(1, micro_batches()) : std::min(plan_.group, std::max<int64_t>(1, micro_batches()));
  groups_ = (micro_batches() + plan_.group - 1) / plan_.group;
  if (all > 0) mesh_.world().all_reduce_max(std::span<int64_t>(&groups_, 1));
  rope_ = layers::make_rope_tables(model_.rope, longest_);
}

/// A row is as long as the longest that any data rank has at this place, so that all ranks cut alike where rows were dealt out; a rank
/// whose rows ended has empty micro-batches.
void Sweep::make_batches(int64_t micro_batch_tokens) {
  const auto all = static_cast<int64_t>(rows_.lengths.size());
  std::vector<int64_t> first_token(static_cast<size_t>(all) + 1, 0);
  for (int64_t r = 0; r < all; ++r)
    first_token[static_cast<size_t>(r) + 1] = first_token[static_cast<size_t>(r)] + rows_.lengths[static_cast<size_t>(r)];
  const bool dealt = rows_.step > 1;
  const int64_t places = dealt ? (all + rows_.step - 1) / rows_.step : static_cast<int64_t>(rows_.ids.size());
  const auto row_at = [&](int64_t place) { return rows_.first + place * rows_.step; };
  const auto width = [&](int64_t place) {
    if (!dealt) return rows_.lengths[static_cast<size_t>(row_at(place))];
    const auto begin = rows_.lengths.begin() + place * rows_.step;
    return *std::max_element(begin, begin + std::min(rows_.step, all - place * rows_.step));
  };
  for (int64_t begin = 0; begin < places;) {
    int64_t end = begin;
    for (int64_t tokens = 0; end < places && (end == begin || tokens + width(end) <= micro_batch_tokens); ++end) tokens += width(end);
    std::vector<int64_t> lengths, firsts;
    std::vector<int32_t> ids;
    for (int64_t place = begin; place < end && row_at(place) < all; ++place) {
      const auto& row = rows_.ids[static_cast<size_t>(place)];
      lengths.push_back(static_cast<int64_t>(row.size()));
      firsts.push_back(first_token[static_cast<size_t>(row_at(place))]);
      ids.insert(ids.end(), row.begin(), row.end());
    }
    layers::Batch batch = layers::make_batch(row_at(begin), lengths);
    batch.row_step = rows_.step;
    batch.all_rows =
        dealt ? parallel::Range{begin * rows_.step, std::min(all, end * rows_.step)} : parallel::Range{row_at(begin), row_at(end)};
    batches_.push_back(std::move(batch));
    batch_ids_.push_back(std::move(ids));
    first_tokens_.push_back(std::move(firsts));
    begin = end;
  }
}

}  // namespace ptq::runner
