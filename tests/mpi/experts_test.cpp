// The promise behind expert ranks: routed experts spread over several ranks give the bits of one rank.

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "tests/mpi/token_deals.h"

namespace ptq::layers {
namespace {

using test::Deal;
using test::deals;
using test::ExpertKind;
using test::ExpertSizes;
using test::ExpertWitness;
using test::routed_tokens;
using test::TinyExperts;
using test::world;

/// Hidden states of the group after all experts, computed by this rank alone.
Tensor alone(const TinyExperts& model, const TokenGroup& whole, LayerHooks& hooks, const ForcedVisits& forced = {}) {
  std::vector<int64_t> all(whole.positions.size());
  std::iota(all.begin(), all.end(), int64_t{0});
  TokenGroup group = test::some_tokens(whole, all);
  const auto self = parallel::make_self_communicator();
  test::run_chunks(model, model.sizes().experts, forced, hooks, *self, 0, group);
  return group.hidden;
}

/// The experts that rank has of the chunks, in the order they come.
std::vector<int> experts_of_rank(const TinyExperts& model, int64_t per_chunk, int rank) {
  std::vector<int> experts;
  for (const parallel::Range& chunk : test::chunks_of(model.sizes().experts, per_chunk)) {
    const parallel::Range share = parallel::even_share(chunk.size(), world().size(), rank);
    for (int64_t e = share.begin; e < share.end; ++e) experts.push_back(static_cast<int>(chunk.begin + e));
  }
  return experts;
}

TEST(ExpertRanks, GiveTheBitsOfOneRank) {
  for (const ExpertKind& kind : test::expert_kinds())
    for (const ExpertSizes& sizes : {ExpertSizes{}, ExpertSizes{.hidden = 8, .experts = 3, .top_k = 3}, ExpertSizes{.experts = 8}})
      for (const DType operand : {DType::kBF16, DType::kF32}) {
        if (operand == DType::kF32 && sizes.experts != 3) continue;
        const TinyExperts model(kind, sizes, operand);
        const TokenGroup whole = routed_tokens(model, 47, operand);
        LayerHooks hooks;
        const Tensor expected = alone(model, whole, hooks);
        for (const Deal& deal : deals())
          for (const int64_t exchange_tokens : {1000, 17})
            for (const int64_t per_chunk : {sizes.experts, sizes.experts / 2}) {
              SCOPED_TRACE(kind.name + ", " + deal.name + ", " + std::to_string(exchange_tokens) + " tokens at a time, chunks of " +
                           std::to_string(per_chunk) + " of " + std::to_string(sizes.experts));
              const std::vector<int64_t> mine = deal.mine(47);
              TokenGroup group = test::some_tokens(whole, mine);

              test::run_chunks(model, per_chunk, {}, hooks, world(), exchange_tokens, group);

              EXPECT_TRUE(test::same_bits(group.hidden, test::rows_of(expected, mine)));
            }
      }
}

TEST(ExpertRanks, RouteTheirTokensAsOneRankDoes) {
  const TinyExperts model({}, {.experts = 9, .top_k = 4}, DType::kBF16);
  const TokenGroup whole = routed_tokens(model, 47, DType::kBF16);
  for (const Deal& deal : deals()) {
    const std::vector<int64_t> mine = deal.mine(47);
    TokenGroup group = test::some_tokens(whole, mine);
    Workspace workspace;
    std::vector<int64_t> counts(9, 0), expected(9, 0);

    route_tokens(model.moe(), model.vectors, workspace, group);
    count_tokens(group, counts);
    world().all_reduce_sum(std::span<int64_t>(counts));

    EXPECT_TRUE(test::same_bits(group.experts, test::rows_of(whole.experts, mine)));
    EXPECT_TRUE(test::same_bits(group.weights, test::rows_of(whole.weights, mine)));
    count_tokens(whole, expected);
    EXPECT_EQ(counts, expected);
  }
}

TEST(ExpertRanks, SeeTheTokensOfAllRanksInOrder) {
  // All in one exchange: each expert's rank sees what one rank alone would, whoever had the tokens.
  for (const ExpertKind& kind : test::expert_kinds()) {
    const TinyExperts model(kind, {.experts = 7, .top_k = 3}, DType::kBF16);
    const TokenGroup whole = routed_tokens(model, 47, DType::kBF16);
    const ForcedVisits forced{.experts = {0, 3, 4, 6}, .visits = 2, .stride = 3};
    ExpertWitness one;
    const Tensor expected = alone(model, whole, one, forced);
    for (const Deal& deal : deals())
      for (const int64_t per_chunk : {7, 2}) {
        SCOPED_TRACE(kind.name + ", " + deal.name + ", chunks of " + std::to_string(per_chunk));
        const std::vector<int64_t> mine = deal.mine(47);
        TokenGroup group = test::some_tokens(whole, mine);
        ExpertWitness many;

        test::run_chunks(model, per_chunk, forced, many, world(), 1000, group);

        EXPECT_TRUE(test::same_bits(group.hidden, test::rows_of(expected, mine)));
        std::vector<ExpertWitness::Input> due;
        for (const int e : experts_of_rank(model, per_chunk, world().rank()))
          for (const auto& input : one.inputs)
            if (input.expert == e) due.push_back(input);
        EXPECT_EQ(many.inputs.size(), due.size());
        for (size_t i = 0; i < std::min(due.size(), many.inputs.size()); ++i) {
          EXPECT_EQ(many.inputs[i].expert, due[i].expert);
          EXPECT_EQ(many.inputs[i].linear, due[i].linear);
          EXPECT_EQ(many.inputs[i].forced, due[i].forced);
          EXPECT_TRUE(test::same_bits(many.inputs[i].x, due[i].x)) << "expert " << due[i].expert << ", input " << i;
        }
      }
  }
}

TEST(ExpertRanks, SeeEveryTokenOnceHoweverFewAreExchangedAtATime) {
  const TinyExperts model({}, {.experts = 7, .top_k = 3}, DType::kBF16);
  const TokenGroup whole = routed_tokens(model, 47, DType::kBF16);
  const ForcedVisits forced{.experts = {0, 3, 4, 6}, .visits = 2, .stride = 3};
  ExpertWitness one;
  alone(model, whole, one, forced);
  // Rows that an expert's linear saw, in any order.
  const auto rows_seen = [](const ExpertWitness& witness) {
    std::map<std::tuple<int, int, bool>, std::multiset<std::string>> rows;
    for (const auto& input : witness.inputs)
      for (int64_t r = 0; r < input.x.dim(0); ++r) {
        const auto* bytes = reinterpret_cast<const char*>(input.x.raw() + r * input.x.row_bytes());
        rows[{input.expert, input.linear, input.forced}].emplace(bytes, bytes + input.x.row_bytes());
      }
    return rows;
  };
  auto expected = rows_seen(one);
  const std::vector<int> mine = experts_of_rank(model, 7, world().rank());
  std::erase_if(expected, [&](const auto& entry) { return std::count(mine.begin(), mine.end(), std::get<0>(entry.first)) == 0; });
  for (const Deal& deal : deals())
    for (const int64_t exchange_tokens : {1, 2, 11}) {
      SCOPED_TRACE(deal.name + ", " + std::to_string(exchange_tokens) + " tokens at a time");
      TokenGroup group = test::some_tokens(whole, deal.mine(47));
      ExpertWitness many;

      test::run_chunks(model, 7, forced, many, world(), exchange_tokens, group);

      EXPECT_TRUE(rows_seen(many) == expected);
    }
}

TEST(ExpertRanks, TakeNoMoreMemoryThanTheySay) {
  // At worst everyone wants the experts of one rank.
  for (const ExpertKind& kind : test::expert_kinds())
    for (int wanted = 0; wanted < world().size(); ++wanted) {
      const TinyExperts model(kind, {.hidden = 64, .intermediate = 5, .experts = 3 * world().size(), .top_k = 3}, DType::kBF16);
      TokenGroup group = routed_tokens(model, 150, DType::kBF16);
      for (int64_t visit = 0; visit < group.experts.numel(); ++visit)
        group.experts.data<int32_t>()[visit] = static_cast<int32_t>(3 * wanted + visit % 3);
      LayerHooks hooks;
      Workspace workspace;

      forward_experts(model.layer, {{0, model.sizes().experts}, [&](int e) { return model.weights(e); }}, {},
                      {DType::kBF16, &hooks, &workspace, &world(), 60}, group);

      EXPECT_LE(workspace.bytes(), expert_scratch_bytes(model.moe(), 64, DType::kBF16, world().size(), 60));
    }
}

TEST(ExpertRanks, NobodyMayHaveTokens) {
  const TinyExperts model({}, {}, DType::kBF16);
  TokenGroup group = routed_tokens(model, 0, DType::kBF16);
  ExpertWitness witness;

  test::run_chunks(model, 2, {.experts = {1}}, witness, world(), 4, group);

  EXPECT_EQ(group.hidden.shape(), (Shape{0, 19}));
  EXPECT_TRUE(witness.inputs.empty());
}

TEST(ExpertRanks, ARankThatSkipsKeepsInStep) {
  for (const ExpertKind& kind : test::expert_kinds())
    for (int broken = 0; broken < world().size(); ++broken) {
      SCOPED_TRACE(kind.name + ", rank " + std::to_string(broken));
      const TinyExperts model(kind, {.experts = 7, .top_k = 3}, DType::kBF16);
      const TokenGroup whole = routed_tokens(model, 47, DType::kBF16);
      const Deal deal = deals()[static_cast<size_t>(broken) % deals().size()];
      const std::vector<int64_t> mine = deal.mine(47), lost_range{parallel::even_share(7, world().size(), broken).begin,
                                                                  parallel::even_share(7, world().size(), broken).end};
      // The broken rank's experts add nothing, the others' all they have to.
      TokenGroup without = test::some_tokens(whole, mine);
      LayerHooks hooks;
      Workspace workspace;
      const auto self = parallel::make_self_communicator();
      const ExpertContext by_itself{DType::kBF16, &hooks, &workspace, self.get(), 0};
      for (const parallel::Range& part : {parallel::Range{0, lost_range[0]}, parallel::Range{lost_range[1], 7}})
        if (part.size() > 0) forward_experts(model.layer, {part, [&](int e) { return model.weights(e); }}, {}, by_itself, without);
      TokenGroup group = test::some_tokens(whole, mine);
      ExpertWitness witness;
      const bool skips = world().rank() == broken;
      const ExpertContext context{DType::kBF16, &witness, &workspace, &world(), 6};

      forward_experts(model.layer, {{0, 7}, skips ? nullptr : std::function([&](int e) { return model.weights(e); }), skips}, {}, context,
                      group);

      EXPECT_TRUE(test::same_bits(group.hidden, without.hidden));
      EXPECT_EQ(witness.inputs.empty(), skips);
    }
}

TEST(ExpertRanks, AGroupOfOneRankNeedsNobody) {
  const TinyExperts model({}, {}, DType::kBF16);
  const TokenGroup whole = routed_tokens(model, 20 + world().rank(), DType::kBF16);
  const auto group_of_one = world().split(world().rank(), 0);
  LayerHooks hooks;
  std::vector<int64_t> all(whole.positions.size());
  std::iota(all.begin(), all.end(), int64_t{0});
  TokenGroup group = test::some_tokens(whole, all);

  test::run_chunks(model, 2, {}, hooks, *group_of_one, 4, group);

  EXPECT_TRUE(test::same_bits(group.hidden, alone(model, whole, hooks)));
}

}  // namespace
}  // namespace ptq::layers
