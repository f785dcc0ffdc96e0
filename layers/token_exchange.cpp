// Tokens to their experts' ranks and outputs back. A token goes once to a rank however many of its experts are there; each expert's output
// comes back by itself, so that the token's owner adds them in ascending order of experts as one rank alone would.

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/core/thread_pool.h"
#include "kernels/ops.h"
#include "layers/moe.h"

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

/// A visit that arrived: its row among all received ones, and where its output goes back from.
struct Arrival {
  int64_t position, row, slot;
  float weight;
};

/// One block of this rank's tokens, with the blocks that the other ranks send at the same time.
void exchange_block(const LayerSpec& layer, const ExpertChunkView& chunk, const ForcedVisits& forced, const ExpertContext& context,
                    TokenGroup& group, int64_t begin, int64_t end) {
  const MoeSpec& moe = *layer.moe();
  parallel::Communicator& ranks = *context.group;
  Workspace& scratch = *context.workspace;
  const ChunkVisits visits = chunk_visits(moe, group, begin, end, chunk.experts, forced);
  const Outgoing out = address(visits, chunk.experts, ranks.size(), group);
  const std::vector<int64_t> rows_in = ranks.all_to_all(out.row_counts), visits_in = ranks.all_to_all(out.visit_counts),
                             routed_in = ranks.all_to_all(out.routed_counts);

  std::vector<VisitRecord> arrived(static_cast<size_t>(sum(visits_in)));
  constexpr auto kRecord = static_cast<int64_t>(sizeof(VisitRecord));
  ranks.all_to_all(out.visits.data(), scaled(out.visit_counts, kRecord), arrived.data(), scaled(visits_in, kRecord));
  const int64_t hidden = group.x.dim(1), row_bytes = hidden * dtype_bytes(context.operand);
  Tensor sent = scratch.get("exchange_sent", {sum(out.row_counts), hidden}, context.operand);
  if (!out.tokens.empty()) kernels::gather_rows(group.x, out.tokens, {}, sent);
  Tensor rows = scratch.get("exchange_rows", {sum(rows_in), hidden}, context.operand);
  ranks.all_to_all(sent.raw(), scaled(out.row_counts, row_bytes), rows.raw(), scaled(rows_in, row_bytes));

  // Who came for which expert. Senders list routed visits first, and only those have an output.
  const parallel::Range share = parallel::even_share(chunk.experts.size(), ranks.size(), ranks.rank());
  const int64_t first_expert = chunk.experts.begin + share.begin;
  std::vector<std::vector<Arrival>> routed(static_cast<size_t>(share.size())), extra(routed.size());
  int64_t record = 0, first_row = 0, first_slot = 0;
  for (size_t r = 0; r < rows_in.size(); ++r) {
    for (int64_t i = 0; i < visits_in[r]; ++i, ++record) {
      const VisitRecord& visit = arrived[static_cast<size_t>(record)];
      auto& list = (visit.forced ? extra : routed)[static_cast<size_t>(visit.expert - first_expert)];
      list.push_back({visit.position, first_row + visit.row, first_slot + i, visit.weight});
    }
    first_row += rows_in[r];
    first_slot += routed_in[r];
  }
  Tensor outputs = scratch.get("exchange_outputs", {context.statistics_only ? 0 : first_slot, hidden}, DType::kF32);
  if (chunk.skip) std::fill_n(outputs.data<float>(), outputs.numel(), 0.0f);
  for (size_t i = 0; i < routed.size() && !chunk.skip; ++i) {
    if (routed[i].empty() && extra[i].empty()) continue;
    const int expert = static_cast<int>(first_expert + static_cast<int64_t>(i));
    const ExpertWeights weights = chunk.weights(expert);
    for (auto* list : {&routed[i], &extra[i]}) {
      std::sort(list->begin(), list->end(), [](const Arrival& a, const Arrival& b) { return a.position < b.position; });
      Visits ordered;
      for (const Arrival& arrival : *list) ordered.add(arrival.row, arrival.position, arrival.weight);
      if (list == &extra[i] || context.statistics_only) {
        run_expert(layer, expert, weights, rows, ordered, list == &extra[i], context, nullptr);
        continue;
      }
      run_expert(layer, expert, weights, rows, ordered, false, context, [&](int64_t first, const Tensor& y) {
        parallel_for(y.dim(0), [&](int64_t t) {
          const int64_t slot = (*list)[static_cast<size_t>(first + t)].slot;
          std::copy_n(y.data<float>() + t * hidden, hidden, outputs.data<float>() + slot * hidden);
        });
      });
    }
  }
  if (context.statistics_only) return;

  Tensor returned = scratch.get("exchange_returned", {sum(out.routed_counts), hidden}, DType::kF32);
  ranks.all_to_all(outputs.raw(), scaled(routed_in, hidden * 4), returned.raw(), scaled(out.routed_counts, hidden * 4));
  int64_t at = 0;
  for (const Visits& list : visits.routed) {  // ascending experts, which is the order they were sent in
    const auto count = static_cast<int64_t>(list.rows.size());
    if (count == 0) continue;
    kernels::add_rows(group.hidden, list.rows, moe.scales_input ? std::vector<float>(list.rows.size(), 1.0f) : list.weights,
                      returned.rows(at, at + count));
    at += count;
  }
}

}  // namespace

void exchange_experts(const LayerSpec& layer, const ExpertChunkView& chunk, const ForcedVisits& forced, const ExpertContext& context,
                      TokenGroup& group) {
  const int64_t tokens = group.x.dim(0);
  int64_t blocks = (tokens + context.exchange_tokens - 1) / context.exchange_tokens;
  context.group->all_reduce_max(std::span<int64_t>(&blocks, 1));
  for (int64_t b = 0; b < blocks; ++b)
    exchange_block(layer, chunk, forced, context, group, std::min(tokens, b * context.exchange_tokens),
                   std::min(tokens, (b + 1) * context.exchange_tokens));
}

}  // namespace ptq::layers
