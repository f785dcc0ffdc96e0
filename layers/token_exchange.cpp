#include "layers/token_exchange.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/thread_pool.h"
#include "kernels/ops.h"

namespace ptq::layers {

namespace {

/// What goes along with the rows: one visit to an expert of the receiving rank.
struct VisitRecord {
  int64_t position;  ///< of the token among all
  int32_t row;       ///< in the rows sent to that rank
  int32_t expert;
  float weight;
  int32_t forced;
};

int64_t sum(const std::vector<int64_t>& values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

std::vector<int64_t> scaled(const std::vector<int64_t>& counts, int64_t bytes) {
  std::vector<int64_t> result;
  for (const int64_t count : counts) result.push_back(count * bytes);
  return result;
}

/// What this rank sends to each of the others, laid one rank after the other.
struct Outgoing {
  std::vector<int64_t> tokens;      ///< index in the group of every row sent
  std::vector<VisitRecord> visits;  ///< per rank: routed ones by (expert, token), then forced ones
  std::vector<int64_t> row_counts, visit_counts, routed_counts;
};

Outgoing address(const ChunkVisits& visits, parallel::Range chunk, int ranks, const TokenGroup& group) {
  Outgoing out;
  std::vector<int32_t> row_of(group.positions.size());
  for (int r = 0; r < ranks; ++r) {
    const parallel::Range theirs = parallel::even_share(chunk.size(), ranks, r);
    std::vector<int64_t> tokens;
    for (int64_t e = theirs.begin; e < theirs.end; ++e)
      for (const auto* list : {&visits.routed[static_cast<size_t>(e)], &visits.forced[static_cast<size_t>(e)]})
        tokens.insert(tokens.end(), list->rows.begin(), list->rows.end());
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    for (size_t i = 0; i < tokens.size(); ++i) row_of[static_cast<size_t>(tokens[i])] = static_cast<int32_t>(i);
    const auto before = static_cast<int64_t>(out.visits.size());
    int64_t routed = 0;
    for (const bool forced : {false, true}) {
      for (int64_t e = theirs.begin; e < theirs.end; ++e) {
        const Visits& list = (forced ? visits.forced : visits.routed)[static_cast<size_t>(e)];
        for (size_t i = 0; i < list.rows.size(); ++i) {
          const auto token = static_cast<size_t>(list.rows[i]);
          out.visits.push_back({group.positions[token], row_of[token], static_cast<int32_t>(chunk.begin + e), list.weights[i], forced});
        }
      }
      if (!forced) routed = static_cast<int64_t>(out.visits.size()) - before;
    }
    out.row_counts.push_back(static_cast<int64_t>(tokens.size()));
    out.visit_counts.push_back(static_cast<int64_t>(out.visits.size()) - before);
    out.routed_counts.push_back(routed);
    out.tokens.insert(out.tokens.end(), tokens.begin(), tokens.end());
  }
  return out;
}

/// A visit that arrived: its row among all received ones, and where its result goes back from.
struct VisitHere {
  int64_t position, row, slot;
  float weight;
};

}  // namespace

TokenExchange::TokenExchange(const MoeSpec& moe, const ExpertContext& context, const TokenGroup& group, int64_t begin, int64_t end,
                             parallel::Range chunk, const ForcedVisits& forced)
    : context_(context), visits_(chunk_visits(moe, group, begin, end, chunk, forced)) {
  parallel::Communicator& ranks = *context.group;
  Outgoing out = address(visits_, chunk, ranks.size(), group);
  rows_in_ = ranks.all_to_all(out.row_counts);
  slots_in_ = ranks.all_to_all(out.routed_counts);
  const std::vector<int64_t> visits_in = ranks.all_to_all(out.visit_counts);
  std::vector<VisitRecord> records(static_cast<size_t>(sum(visits_in)));
  constexpr auto kRecord = static_cast<int64_t>(sizeof(VisitRecord));
  ranks.all_to_all(out.visits.data(), scaled(out.visit_counts, kRecord), records.data(), scaled(visits_in, kRecord));
  tokens_ = std::move(out.tokens);
  rows_out_ = std::move(out.row_counts);
  slots_out_ = std::move(out.routed_counts);

  // Senders list routed visits first, and only those have a result.
  const parallel::Range share = parallel::even_share(chunk.size(), ranks.size(), ranks.rank());
  const int64_t first_expert = chunk.begin + share.begin;
  std::vector<std::vector<VisitHere>> routed_here(static_cast<size_t>(share.size())), forced_here(routed_here.size());
  int64_t record = 0, first_row = 0, first_slot = 0;
  for (size_t r = 0; r < rows_in_.size(); ++r) {
    for (int64_t i = 0; i < visits_in[r]; ++i, ++record) {
      const VisitRecord& visit = records[static_cast<size_t>(record)];
      auto& list = (visit.forced ? forced_here : routed_here)[static_cast<size_t>(visit.expert - first_expert)];
      list.push_back({visit.position, first_row + visit.row, first_slot + i, visit.weight});
    }
    first_row += rows_in_[r];
    first_slot += slots_in_[r];
  }
  for (size_t e = 0; e < routed_here.size(); ++e) {
    if (routed_here[e].empty() && forced_here[e].empty()) continue;
    Arrival arrival{.expert = static_cast<int>(first_expert + static_cast<int64_t>(e))};
    for (auto* list : {&routed_here[e], &forced_here[e]}) {
      std::sort(list->begin(), list->end(), [](const VisitHere& a, const VisitHere& b) { return a.position < b.position; });
      Visits& ordered = list == &routed_here[e] ? arrival.routed : arrival.forced;
      for (const VisitHere& visit : *list) ordered.add(visit.row, visit.position, visit.weight);
    }
    for (const VisitHere& visit : routed_here[e]) arrival.slots.push_back(visit.slot);
    arrivals_.push_back(std::move(arrival));
  }
}

int64_t TokenExchange::slots() const { return sum(slots_in_); }

Tensor TokenExchange::send(const Tensor& x, const std::string& name) const {
  Workspace& scratch = *context_.workspace;
  Tensor sent = scratch.get("exchange_sent", {sum(rows_out_), x.dim(1)}, x.dtype());
  if (!tokens_.empty()) kernels::gather_rows(x, tokens_, {}, sent);
  Tensor rows = scratch.get(name, {sum(rows_in_), x.dim(1)}, x.dtype());
  context_.group->all_to_all(sent.raw(), scaled(rows_out_, x.row_bytes()), rows.raw(), scaled(rows_in_, x.row_bytes()));
  return rows;
}

Tensor TokenExchange::give_back(const Tensor& results, const std::string& name) const {
  Tensor returned = context_.workspace->get(name, {sum(slots_out_), results.dim(1)}, DType::kF32);
  context_.group->all_to_all(results.raw(), scaled(slots_in_, results.row_bytes()), returned.raw(),
                             scaled(slots_out_, results.row_bytes()));
  return returned;
}

namespace {

void exchange_block(const LayerSpec& layer, const ExpertChunkView& chunk, const ForcedVisits& forced, const ExpertContext& context,
                    TokenGroup& group, int64_t begin, int64_t end) {
  const MoeSpec& moe = *layer.moe();
  const TokenExchange exchange(moe, context, group, begin, end, chunk.experts, forced);
  const Tensor rows = exchange.send(group.x, "exchange_rows");
  Tensor outputs =
      context.workspace->get("exchange_outputs", {context.statistics_only ? 0 : exchange.slots(), group.x.dim(1)}, DType::kF32);
  if (chunk.skip) std::fill_n(outputs.data<float>(), outputs.numel(), 0.0f);
  for (const TokenExchange::Arrival& arrival : exchange.arrivals()) {
    if (chunk.skip) break;
    const ExpertWeights weights = chunk.weights(arrival.expert);
    const auto place = [&](const ExpertPiece& piece) { place_rows(piece.output, arrival.slots, piece.first, outputs); };
    run_expert(layer, arrival.expert, weights, rows, arrival.routed, false, context,
               context.statistics_only ? std::function<void(const ExpertPiece&)>() : place);
    run_expert(layer, arrival.expert, weights, rows, arrival.forced, true, context, nullptr);
  }
  if (context.statistics_only) return;

  const Tensor returned = exchange.give_back(outputs, "exchange_returned");
  int64_t at = 0;
  for (const Visits& list : exchange.visits().routed) {
    const auto count = static_cast<int64_t>(list.rows.size());
    if (count == 0) continue;
    kernels::add_rows(group.hidden, list.rows, moe.scales_input ? std::vector<float>(list.rows.size(), 1.0f) : list.weights,
                      returned.rows(at, at + count));
    at += count;
  }
}

}  // namespace

void place_rows(const Tensor& x, const std::vector<int64_t>& rows, int64_t first, Tensor& out) {
  const int64_t width = x.dim(1);
  parallel_for(x.dim(0), [&](int64_t i) {
    const int64_t row = rows[static_cast<size_t>(first + i)];
    std::copy_n(x.data<float>() + i * width, width, out.data<float>() + row * width);
  });
}

void in_exchanged_blocks(const ExpertContext& context, int64_t tokens, const std::function<void(int64_t, int64_t)>& body) {
  int64_t blocks = (tokens + context.exchange_tokens - 1) / context.exchange_tokens;
  context.group->all_reduce_max(std::span<int64_t>(&blocks, 1));
  for (int64_t b = 0; b < blocks; ++b)
    body(std::min(tokens, b * context.exchange_tokens), std::min(tokens, (b + 1) * context.exchange_tokens));
}

void exchange_experts(const LayerSpec& layer, const ExpertChunkView& chunk, const ForcedVisits& forced, const ExpertContext& context,
                      TokenGroup& group) {
  in_exchanged_blocks(context, group.x.dim(0),
                      [&](int64_t begin, int64_t end) { exchange_block(layer, chunk, forced, context, group, begin, end); });
}

}  // namespace ptq::layers
