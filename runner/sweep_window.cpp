// The forward pass of one window on one pipeline rank: micro-batches in groups, so that routed experts see many tokens at once.

#include <algorithm>

#include "kernels/ops.h"
#include "runner/expert_source.h"

namespace ptq::runner {

using parallel::even_share;
using parallel::Range;

Range Sweep::token_share(int64_t m) const {
  return even_share(batches_[static_cast<size_t>(m)].tokens(), mesh_.shape().tensor, mesh_.tensor_rank());
}

Tensor Sweep::gather_rows(int64_t m, const Tensor& share, const std::string& name) {
  const int64_t tokens = batches_[static_cast<size_t>(m)].tokens(), ranks = mesh_.shape().tensor;
  if (ranks == 1) return share;
  Tensor whole = workspace_.get(name, {tokens, share.dim(1)}, share.dtype());
  std::vector<int64_t> bytes;
  for (int64_t r = 0; r < ranks; ++r) bytes.push_back(even_share(tokens, ranks, r).size() * share.row_bytes());
  mesh_.tensor().all_gather(share.raw(), bytes, whole.raw());
  return whole;
}

Tensor Sweep::gather_tokens(int64_t m, const Tensor& share) {
  const Tensor whole = gather_rows(m, share, "tokens");
  Tensor hidden = workspace_.get("hidden", whole.shape(), DType::kF32);
  kernels::convert(whole, hidden);
  return hidden;
}

void Sweep::add_positions(int64_t m, std::vector<int64_t>& positions) const {
  const layers::Batch& batch = batches_[static_cast<size_t>(m)];
  const Range share = token_share(m);
  const auto& first_tokens = first_tokens_[static_cast<size_t>(m)];
  for (size_t row = 0; row + 1 < batch.starts.size(); ++row)
    for (int64_t t = std::max(share.begin, batch.starts[row]); t < std::min(share.end, batch.starts[row + 1]); ++t)
      positions.push_back(first_tokens[row] + t - batch.starts[row]);
}

Tensor Sweep::final_hidden(int64_t m) {
  const Range share = token_share(m);
  return gather_tokens(m, store_->load(m, workspace_.get("share", {share.size(), model_.hidden}, options_.hidden)));
}

void Sweep::run_experts(SweepClient& client, const layers::LayerSpec& layer, const layers::LayerWeights& weights, ExpertSource& experts,
                        layers::TokenGroup& group) {
  const layers::MoeSpec& moe = *layer.moe();
  layers::route_tokens(moe, weights.vectors, workspace_, group);
  std::vector<int64_t> counts(moe.experts.size(), 0);
  layers::count_tokens(group, counts);
  client.routed(layer, counts);
  layers::ForcedVisits forced;
  if (client.forces_visits()) {
    mesh_.stage().all_reduce_sum(std::span<int64_t>(counts));
    forced = client.forced(layer, counts);
  }
  const layers::ExpertContext context{options_.operand, &client.hooks(), &workspace_, &mesh_.experts(), kExchangeTokens};
  experts.each(layer, [&](const ExpertChunk& chunk) {
    const layers::ExpertChunkView view{chunk.experts, [&](int e) { return client.expert_weights(chunk, e); }, chunk.broken};
    layers::forward_experts(layer, view, forced, context, group);
  });
  if (!streams_experts_ || !client.shows_tokens_again(layer)) return;
  layers::TokenGroup& kept = kept_groups_[layer.index];
  kept.positions = group.positions;
  kept.experts = group.experts;
  kept.weights = group.weights;
  kept.x = Tensor::empty(group.x.shape(), group.x.dtype());
  std::copy_n(group.x.raw(), group.x.bytes(), kept.x.raw());
}

void Sweep::show_again(SweepClient& client, const ExpertChunk& chunk) {
  const layers::ExpertContext context{options_.operand, &client.hooks(), &workspace_, &mesh_.experts(), kExchangeTokens, true};
  const layers::ExpertChunkView view{chunk.experts, [&](int e) { return client.expert_weights(chunk, e); }, chunk.broken};
  layers::forward_experts(*chunk.layer, view, {}, context, kept_groups_.at(chunk.layer->index));
  client.experts_forwarded(chunk, true);
}

/// states[i] is this rank's share of micro-batch first_batch + i, changed from the input of the first layer to the output of the last.
void Sweep::run_group(SweepClient& client, const std::vector<LayerTensors>& layers, const std::vector<layers::LayerWeights>& weights,
                      ExpertSource& experts, int64_t first_batch, std::vector<Tensor>& states) {
  const layers::ForwardContext context{options_.operand, &rope_, model_.rope.rotary_dim, &mesh_.tensor(), &client.hooks(), &workspace_};
  const auto count = static_cast<int64_t>(states.size());
  layers::TokenGroup group;
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) tokens += token_share(first_batch + i).size();

  size_t next = 0;
  do {
    // A run of layers that each micro-batch passes by itself, up to the next experts.
    size_t stop = next;
    while (stop < layers.size() && !layers[stop].layer->moe()) ++stop;
    const bool routed = stop < layers.size();
    if (routed) {
      group.x = workspace_.get("group_x", {tokens, model_.hidden}, options_.operand);
      group.hidden = workspace_.get("group_hidden", {tokens, model_.hidden}, DType::kF32);
      group.positions.clear();
    }
    int64_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
      const layers::Batch& batch = batches_[static_cast<size_t>(first_batch + i)];
      const Range share = token_share(first_batch + i);
      Tensor hidden = gather_tokens(first_batch + i, states[static_cast<size_t>(i)]);
      Tensor rounded = workspace_.get("rounded", hidden.shape(), options_.hidden);
      const auto keep = [&](size_t l) {
        if (!options_.keep_inputs) return;
        kernels::convert(hidden, rounded);
        inputs_[static_cast<size_t>(layers[l].layer->index)].store(first_batch + i, rounded.rows(share.begin, share.end));
      };
      for (size_t l = next; l < stop; ++l) {
        keep(l);
        layers::forward_layer(*layers[l].layer, weights[l], batch, context, hidden);
        kernels::convert(hidden, rounded);
        if (l + 1 < stop || routed) kernels::convert(rounded, hidden);
      }
      if (routed) {
        keep(stop);
        const Tensor x = layers::forward_layer(*layers[stop].layer, weights[stop], batch, context, hidden);
        const auto put = [&](const Tensor& from, const Tensor& to) {
          std::copy_n(from.rows(share.begin, share.end).raw(), share.size() * from.row_bytes(), to.rows(at, at + share.size()).raw());
        };
        put(x, group.x);
        put(hidden, group.hidden);
        add_positions(first_batch + i, group.positions);
        at += share.size();
      } else if (stop > next) {
        Tensor& state = states[static_cast<size_t>(i)];
        const Tensor mine = rounded.rows(share.begin, share.end);
        if (count == 1)
          state = mine;
        else
          std::copy_n(mine.raw(), mine.bytes(), (state = Tensor::empty(mine.shape(), mine.dtype())).raw());
      }
    }
    if (routed) {
      run_experts(client, *layers[stop].layer, weights[stop], experts, group);
      at = 0;
      for (int64_t i = 0; i < count; ++i) {
        Tensor& state = states[static_cast<size_t>(i)];
        const int64_t rows = token_share(first_batch + i).size();
        state = Tensor::empty({rows, model_.hidden}, options_.hidden);
        kernels::convert(group.hidden.rows(at, at + rows), state);
        at += rows;
      }
    }
    next = stop + 1;
  } while (next < layers.size());
}

/// An output of the last stage on its way to the first one's store.
struct Sweep::PendingOutput {
  int64_t micro_batch;
  Tensor buffer;
  std::unique_ptr<parallel::Transfer> transfer;
};

void Sweep::run_window(SweepClient& client, const std::vector<LayerTensors>& layers, ExpertSource& experts) {
  const int stage = mesh_.pipeline_rank(), stages = mesh_.shape().pipeline;
  const bool is_first = stage == 0, is_last = stage == stages - 1;
  constexpr int kForward = 1, kReturn = 2;
  parallel::Communicator& pipeline = mesh_.pipeline();
  std::vector<layers::LayerWeights> weights;
  for (const auto& layer : layers) weights.push_back(client.weights(layer));

  std::deque<PendingOutput> returning, sending;
  // First stage: outputs of the last one still on their way, straight into the store where it is memory. A stage returns nothing before it
  // has a whole group, so so many must be able to wait.
  const size_t most_returning = store_ && store_->spilled() ? static_cast<size_t>(stages * plan_.group + 1) : batches_.size();
  const auto keep_oldest = [&] {
    returning.front().transfer->wait();
    store_->store(returning.front().micro_batch, returning.front().buffer);
    returning.pop_front();
  };
  for (int64_t g = 0; g < groups_; ++g) {
    const int64_t first = std::min(micro_batches(), g * plan_.group), last = std::min(micro_batches(), first + plan_.group);
    std::vector<Tensor> states;
    for (int64_t m = first; m < last; ++m) {
      const Shape shape{token_share(m).size(), model_.hidden};
      const bool own_memory = last - first > 1 && !(is_first && !store_->spilled());
      Tensor input = own_memory ? Tensor::empty(shape, options_.hidden) : workspace_.get("share", shape, options_.hidden);
      if (is_first)
        input = store_->load(m, input);
      else
        pipeline.receive(input.raw(), input.bytes(), stage - 1, kForward)->wait();
      states.push_back(input);
    }
    // A rank without tokens of its own in this group may still have other ranks' experts.
    if (!states.empty() || std::any_of(layers.begin(), layers.end(), [](const auto& layer) { return layer.layer->moe(); }))
      run_group(client, layers, weights, experts, first, states);

    for (int64_t m = first; m < last; ++m) {
      const Tensor& output = states[static_cast<size_t>(m - first)];
      if (is_first && is_last) {
        store_->store(m, output);
        continue;
      }
      if (sending.size() == 2) {
        sending.front().transfer->wait();
        sending.pop_front();
      }
      PendingOutput out{m, workspace_.get("send" + std::to_string(m % 2), output.shape(), options_.hidden), nullptr};
      std::copy(output.raw(), output.raw() + output.bytes(), out.buffer.raw());
      out.transfer = pipeline.send(out.buffer.raw(), out.buffer.bytes(), is_last ? 0 : stage + 1, is_last ? kReturn : kForward);
      sending.push_back(std::move(out));
      if (!is_first) continue;
      if (returning.size() == most_returning) keep_oldest();
      const Tensor slot = store_->spilled() ? Tensor() : store_->load(m, Tensor());
      PendingOutput back{m, slot.defined() ? slot : Tensor::empty(output.shape(), options_.hidden), nullptr};
      back.transfer = pipeline.receive(back.buffer.raw(), back.buffer.bytes(), stages - 1, kReturn);
      returning.push_back(std::move(back));
    }
  }
  for (auto& out : sending) out.transfer->wait();
  while (!returning.empty()) keep_oldest();
  for (const auto& layer : layers)
    if (layer.layer->moe()) experts.forwarded(*layer.layer);
}

}  // namespace ptq::runner
