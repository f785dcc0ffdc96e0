#include "layers/moe.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <set>

#include "tests/unit/layers/tiny_experts.h"

namespace ptq::layers {
namespace {

using test::ExpertKind;
using test::ExpertSizes;
using test::ExpertWitness;
using test::TinyExperts;

/// Tokens of the model with their routing.
TokenGroup routed_tokens(const TinyExperts& model, int64_t tokens, DType operand, uint64_t seed = 100) {
  TokenGroup group = test::random_tokens(tokens, model.sizes().hidden, operand, seed);
  Workspace workspace;
  route_tokens(model.moe(), model.vectors, workspace, group);
  return group;
}

std::vector<int64_t> all_of(const TokenGroup& group) {
  std::vector<int64_t> tokens(group.positions.size());
  std::iota(tokens.begin(), tokens.end(), int64_t{0});
  return tokens;
}

/// Hidden states after all experts, on one rank.
Tensor through_experts(const TinyExperts& model, const TokenGroup& before, int64_t per_chunk, const ForcedVisits& forced,
                       LayerHooks& hooks) {
  TokenGroup group = test::some_tokens(before, all_of(before));
  const auto self = parallel::make_self_communicator();
  test::run_chunks(model, per_chunk, forced, hooks, *self, 0, group);
  return group.hidden;
}

Tensor through_experts(const TinyExperts& model, const TokenGroup& before, int64_t per_chunk = 1000) {
  LayerHooks hooks;
  return through_experts(model, before, per_chunk, {}, hooks);
}

class EveryKind : public testing::TestWithParam<ExpertKind> {};
INSTANTIATE_TEST_SUITE_P(ForwardExperts, EveryKind, testing::ValuesIn(test::expert_kinds()), [](const auto& kind) {
  std::string name = kind.param.name;
  std::erase(name, ',');
  std::replace(name.begin(), name.end(), ' ', '_');
  return name;
});

TEST_P(EveryKind, FollowsTheFormula) {
  for (const ExpertSizes& sizes : {ExpertSizes{}, ExpertSizes{33, 7, 3, 1}, ExpertSizes{5, 40, 6, 6}, ExpertSizes{1, 1, 1, 1}})
    for (const DType operand : {DType::kF32, DType::kBF16}) {
      const TinyExperts model(GetParam(), sizes, operand);
      const TokenGroup group = routed_tokens(model, 37, operand);

      const Tensor hidden = through_experts(model, group);

      // In bf16 what an expert's down projection reads may round to the neighbour of what f64 rounds to.
      EXPECT_LT(test::relative_error(hidden, test::plain_experts(model, group)), operand == DType::kF32 ? 3e-6 : 6e-3);
    }
}

TEST_P(EveryKind, ManyTokensPassInPieces) {
  const TinyExperts model(GetParam(), {.hidden = 6, .intermediate = 5, .experts = 2, .top_k = 2}, DType::kF32);
  const TokenGroup group = routed_tokens(model, 2500, DType::kF32);
  ExpertWitness witness;

  const Tensor hidden = through_experts(model, group, 2, {}, witness);

  EXPECT_LT(test::relative_error(hidden, test::plain_experts(model, group)), 3e-6);
  EXPECT_GT(witness.inputs.size(), 4u) << "2500 tokens of one expert in one piece";
}

TEST_P(EveryKind, TakesNoMoreMemoryThanItSays) {
  for (const DType operand : {DType::kF32, DType::kBF16}) {
    const TinyExperts model(GetParam(), {.hidden = 6, .intermediate = 5, .experts = 3, .top_k = 3}, operand);
    TokenGroup group = test::random_tokens(2500, 6, operand);
    Workspace workspace;
    LayerHooks hooks;
    const auto self = parallel::make_self_communicator();

    route_tokens(model.moe(), model.vectors, workspace, group);
    forward_experts(model.layer, {{0, 3}, [&](int e) { return model.weights(e); }}, {}, {operand, &hooks, &workspace, self.get(), 0},
                    group);

    EXPECT_LE(workspace.bytes(), expert_scratch_bytes(model.moe(), 6, operand, 1, 0));
    EXPECT_GE(workspace.bytes(), expert_scratch_bytes(model.moe(), 6, operand, 1, 0) / 2) << "far less";
  }
}

TEST_P(EveryKind, ChunksDoNotChangeABit) {
  for (const DType operand : {DType::kF32, DType::kBF16}) {
    const TinyExperts model(GetParam(), {.experts = 7, .top_k = 3}, operand);
    const TokenGroup group = routed_tokens(model, 50, operand);
    const Tensor whole = through_experts(model, group);

    for (const int64_t per_chunk : {1, 2, 3, 6}) EXPECT_TRUE(test::same_bits(through_experts(model, group, per_chunk), whole)) << per_chunk;
  }
}

TEST_P(EveryKind, TokensDoNotSeeEachOther) {
  const TinyExperts model(GetParam(), {}, DType::kBF16);
  const TokenGroup group = routed_tokens(model, 60, DType::kBF16);
  const Tensor whole = through_experts(model, group);

  for (const int64_t groups : {2, 3, 60}) {
    for (int64_t g = 0; g < groups; ++g) {
      // Neighbours, and every groups-th.
      std::vector<int64_t> run, comb;
      const parallel::Range range = parallel::even_share(60, groups, g);
      for (int64_t t = range.begin; t < range.end; ++t) run.push_back(t);
      for (int64_t t = g; t < 60; t += groups) comb.push_back(t);
      for (const auto& tokens : {run, comb}) {
        TokenGroup part = test::some_tokens(group, tokens);
        Workspace workspace;
        route_tokens(model.moe(), model.vectors, workspace, part);

        EXPECT_TRUE(test::same_bits(part.experts, test::rows_of(group.experts, tokens)));
        EXPECT_TRUE(test::same_bits(part.weights, test::rows_of(group.weights, tokens)));
        EXPECT_TRUE(test::same_bits(through_experts(model, part, 2), test::rows_of(whole, tokens)));
      }
    }
  }
}

TEST_P(EveryKind, HooksSeeTheTokensOfEachExpertInOrder) {
  const TinyExperts model(GetParam(), {}, DType::kBF16);
  const TokenGroup group = routed_tokens(model, 40, DType::kBF16);
  ExpertWitness witness;

  through_experts(model, group, 2, {}, witness);

  size_t next = 0;
  for (int e = 0; e < model.sizes().experts; ++e) {
    std::vector<int64_t> tokens;
    std::vector<float> factors;
    for (int64_t visit = 0; visit < group.experts.numel(); ++visit)
      if (group.experts.data<int32_t>()[visit] == e) {
        tokens.push_back(visit / model.sizes().top_k);
        factors.push_back(group.weights.data<float>()[visit]);
      }
    ASSERT_FALSE(tokens.empty()) << "a poor choice of seed";
    Tensor expected = Tensor::empty({static_cast<int64_t>(tokens.size()), model.sizes().hidden}, DType::kBF16);
    kernels::gather_rows(group.x, tokens, model.moe().scales_input ? factors : std::vector<float>{}, expected);
    const ExpertLinears& linears = model.moe().experts[static_cast<size_t>(e)];

    ASSERT_LT(next + 1, witness.inputs.size());
    const auto& outer = witness.inputs[next++];
    const auto& inner = witness.inputs[next++];
    EXPECT_EQ(outer.expert, e);
    EXPECT_EQ(outer.linear, linears.gate_up >= 0 ? linears.gate_up : linears.up) << "once for gate and up together";
    EXPECT_FALSE(outer.forced);
    EXPECT_TRUE(test::same_bits(outer.x, expected));
    EXPECT_EQ(inner.expert, e);
    EXPECT_EQ(inner.linear, linears.down);
    EXPECT_FALSE(inner.forced);
    EXPECT_EQ(inner.x.shape(), (Shape{expected.dim(0), model.sizes().intermediate}));
    EXPECT_EQ(inner.x.dtype(), DType::kBF16);
  }
  EXPECT_EQ(next, witness.inputs.size());
}

TEST_P(EveryKind, EveryLinearAsksWhatToRead) {
  // One linear after the other reads zeros: as if its weight were zero.
  struct Blank : public LayerHooks {
    Tensor quantized_input(const LayerSpec&, int linear, const Tensor& x) override {
      asked.insert(linear);
      return linear == blank ? Tensor::zeros(x.shape(), DType::kF32) : x;
    }
    int blank = -1;
    std::set<int> asked;
  };
  const TinyExperts model(GetParam(), {.experts = 2, .top_k = 1}, DType::kBF16);
  const TokenGroup group = routed_tokens(model, 20, DType::kBF16);
  const Tensor untouched = through_experts(model, group);
  for (size_t linear = 0; linear < model.layer.linears.size(); ++linear) {
    Blank hooks;
    hooks.blank = static_cast<int>(linear);

    const Tensor hidden = through_experts(model, group, 1, {}, hooks);

    EXPECT_EQ(hooks.asked.size(), model.layer.linears.size());
    EXPECT_FALSE(test::same_bits(hidden, untouched)) << model.layer.linears[linear].module;
    const bool is_all_blank = model.layer.linears[linear].is_stacked() && !GetParam().bias;
    EXPECT_EQ(test::same_bits(hidden, group.hidden), is_all_blank) << model.layer.linears[linear].module;
  }
}

TEST(ForwardExperts, AsksForTheWeightsOfExpertsThatTokensReachOnceAndInOrder) {
  const TinyExperts model({}, {.experts = 9, .top_k = 2}, DType::kF32);
  TokenGroup group = test::random_tokens(4, model.sizes().hidden, DType::kF32);
  group.experts = Tensor::empty({4, 2}, DType::kI32);
  group.weights = test::random_tensor({4, 2}, DType::kF32, 5);
  const std::vector<int32_t> chosen{1, 6, 4, 6, 1, 8, 4, 6};
  std::copy(chosen.begin(), chosen.end(), group.experts.data<int32_t>());
  const auto self = parallel::make_self_communicator();
  LayerHooks hooks;
  Workspace workspace;
  std::vector<int> asked;

  for (const parallel::Range& chunk : {parallel::Range{0, 6}, parallel::Range{6, 9}})
    forward_experts(model.layer, {chunk, [&](int e) { return asked.push_back(e), model.weights(e); }}, {.experts = {2}},
                    {DType::kF32, &hooks, &workspace, self.get(), 0}, group);

  EXPECT_EQ(asked, (std::vector<int>{1, 2, 4, 6, 8})) << "2 is forced, the others routed";
}

TEST(ForwardExperts, AGroupMayBeEmpty) {
  const TinyExperts model({}, {}, DType::kBF16);
  TokenGroup group = routed_tokens(model, 0, DType::kBF16);
  ExpertWitness witness;
  std::vector<int64_t> counts(5, 0);

  count_tokens(group, counts);
  const Tensor hidden = through_experts(model, group, 2, {.experts = {0, 1}}, witness);

  EXPECT_EQ(hidden.shape(), (Shape{0, 19}));
  EXPECT_TRUE(witness.inputs.empty());
  EXPECT_EQ(counts, std::vector<int64_t>(5, 0));
}

TEST(ForwardExperts, SkippingLeavesEverythingAsItIs) {
  const TinyExperts model({}, {}, DType::kF32);
  TokenGroup group = routed_tokens(model, 10, DType::kF32);
  const Tensor before = test::rows_of(group.hidden, all_of(group));
  const auto self = parallel::make_self_communicator();
  ExpertWitness witness;
  Workspace workspace;

  forward_experts(model.layer, {.experts = {0, 5}, .weights = nullptr, .skip = true}, {.experts = {3}},
                  {DType::kF32, &witness, &workspace, self.get(), 0}, group);

  EXPECT_TRUE(test::same_bits(group.hidden, before));
  EXPECT_TRUE(witness.inputs.empty());
}

TEST(ForwardExperts, ForcedVisitsAreOnlySeen) {
  for (const ExpertKind& kind : test::expert_kinds()) {
    SCOPED_TRACE(kind.name);
    const TinyExperts model(kind, {.experts = 6, .top_k = 2}, DType::kBF16);
    const TokenGroup group = routed_tokens(model, 30, DType::kBF16);
    const ForcedVisits forced{.experts = {1, 2, 5}, .visits = 2, .stride = 3};
    ExpertWitness alone, together;
    const Tensor hidden = through_experts(model, group, 6, {}, alone);

    for (const int64_t per_chunk : {6, 1}) {
      together.inputs.clear();
      EXPECT_TRUE(test::same_bits(through_experts(model, group, per_chunk, forced, together), hidden));

      // What was routed is seen as before, each expert's forced tokens after it, in order. Where weights scale what experts read, forced
      // ones read no more of a token than the least of its own.
      std::vector<ExpertWitness::Input> seen_routed, seen_forced;
      for (const auto& input : together.inputs) (input.forced ? seen_forced : seen_routed).push_back(input);
      ASSERT_EQ(seen_routed.size(), alone.inputs.size());
      for (size_t i = 0; i < seen_routed.size(); ++i) EXPECT_TRUE(test::same_bits(seen_routed[i].x, alone.inputs[i].x));
      ASSERT_EQ(seen_forced.size(), 6u) << "what gate and up read, and down, of three experts";
      for (size_t i = 0; i < 3; ++i) {
        std::vector<int64_t> tokens;
        std::vector<float> least;
        for (size_t t = 0; t < 30; ++t) {
          const std::vector<int> sent = forced.of(group.positions[t], group.experts.data<int32_t>() + 2 * t, 2);
          if (std::count(sent.begin(), sent.end(), forced.experts[i]) == 0) continue;
          tokens.push_back(static_cast<int64_t>(t));
          least.push_back(std::min(group.weights.data<float>()[2 * t], group.weights.data<float>()[2 * t + 1]));
        }
        Tensor expected = Tensor::empty({static_cast<int64_t>(tokens.size()), model.sizes().hidden}, DType::kBF16);
        kernels::gather_rows(group.x, tokens, kind.scales_input ? least : std::vector<float>{}, expected);
        EXPECT_EQ(seen_forced[2 * i].expert, forced.experts[i]);
        EXPECT_TRUE(test::same_bits(seen_forced[2 * i].x, expected));
        EXPECT_EQ(seen_forced[2 * i + 1].linear, model.moe().experts[static_cast<size_t>(forced.experts[i])].down);
        EXPECT_EQ(seen_forced[2 * i + 1].x.dim(0), static_cast<int64_t>(tokens.size()));
      }
    }
  }
}

TEST(ForcedVisits, NeverGoWhereTheTokenIsRouted) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> order(12);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    const std::vector<int32_t> routed(order.begin(), order.begin() + 4);
    std::vector<int> experts;
    for (int e = 0; e < 12; ++e)
      if (random() % 2) experts.push_back(e);
    const ForcedVisits forced{
        .experts = experts, .visits = static_cast<int64_t>(1 + random() % 15), .stride = static_cast<int64_t>(1 + random() % 3)};
    const auto position = static_cast<int64_t>(random() % 1000);

    const std::vector<int> found = forced.of(position, routed.data(), 4);

    const std::set<int> different(found.begin(), found.end());
    EXPECT_EQ(different.size(), found.size()) << "the same expert twice";
    EXPECT_LE(static_cast<int64_t>(found.size()), forced.visits);
    EXPECT_TRUE(found.empty() || position % forced.stride == 0);
    for (const int e : found) {
      EXPECT_EQ(std::count(routed.begin(), routed.end(), e), 0);
      EXPECT_EQ(std::count(experts.begin(), experts.end(), e), 1);
    }
  }
}

TEST(ForcedVisits, NobodyIsForcedWhereNoExpertIsStarved) {
  const int32_t routed[]{0, 1};

  for (int64_t position = 0; position < 10; ++position) {
    EXPECT_TRUE(ForcedVisits{}.of(position, routed, 2).empty());
    EXPECT_TRUE(force_visits({}, 64, 1000).of(position, routed, 2).empty());
  }
}

TEST(ForcedVisits, GiveEveryStarvedExpertTheTokensItNeeds) {
  const int32_t elsewhere[]{1000};
  for (const int64_t tokens : {1, 2, 3, 5, 64, 100, 1023, 4096, 65536})
    for (const int count : {1, 2, 3, 4, 6, 10, 64, 127})
      for (const int64_t each : {1, 2, 8, 64}) {
        std::vector<int> experts;
        for (int e = 0; e < count; ++e) experts.push_back(3 * e);
        std::map<int, int64_t> got;
        int64_t sent = 0;

        const ForcedVisits forced = force_visits(experts, each, tokens);
        for (int64_t position = 0; position < tokens; ++position)
          for (const int e : forced.of(position, elsewhere, 1)) ++got[e], ++sent;

        SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(count) + " experts of " + std::to_string(each));
        for (const int e : experts) EXPECT_GE(got[e], std::min(2 * each, tokens)) << e;
        EXPECT_LE(sent, 4 * each * count + std::max<int64_t>(tokens, count)) << "far more visits than were asked for";
      }
}

TEST(RouteTokens, BiasIsAddedToTheLogits) {
  for (const auto kind : {RouterSpec::Kind::kSoftmax, RouterSpec::Kind::kTopKSoftmax, RouterSpec::Kind::kSigmoid}) {
    TinyExperts model({}, {.hidden = 24, .experts = 7, .top_k = 3}, DType::kF32);
    auto& moe = std::get<MoeSpec>(model.layer.blocks[0].body);
    moe.router.kind = kind;
    moe.router.has_bias = true;
    moe.router.normalize = true;
    const Tensor bias = test::random_tensor({7}, DType::kF32, 9, 2.0f), &weight = model.vectors.at(moe.router.module + ".weight");
    model.vectors[moe.router.module + ".bias"] = bias;

    const TokenGroup group = routed_tokens(model, 1500, DType::kF32);

    const Tensor logits = test::matmul_by_fma(group.x, weight, bias);
    const auto rule_kind = kind == RouterSpec::Kind::kSoftmax       ? kernels::RouteRule::Kind::kSoftmax
                           : kind == RouterSpec::Kind::kTopKSoftmax ? kernels::RouteRule::Kind::kTopKSoftmax
                                                                    : kernels::RouteRule::Kind::kSigmoid;
    const test::Routing expected = test::route_in_f64(logits, Tensor(), {.kind = rule_kind, .top_k = 3, .normalize = true});
    const auto* experts = group.experts.data<int32_t>();
    EXPECT_EQ(std::vector<int32_t>(experts, experts + group.experts.numel()), expected.experts);
    EXPECT_LT(test::relative_error(group.weights, expected.weights), 1e-6);
  }
}

TEST(RouteTokens, CorrectionAndGroupsDecideWhoIsChosen) {
  TinyExperts model({}, {.hidden = 24, .experts = 8, .top_k = 3}, DType::kF32);
  auto& moe = std::get<MoeSpec>(model.layer.blocks[0].body);
  moe.router.kind = RouterSpec::Kind::kGroupedSigmoid;
  moe.router.correction = moe.router.module + ".e_score_correction_bias";
  moe.router.groups = 4;
  moe.router.top_groups = 2;
  moe.router.normalize = true;
  moe.router.scaling = 2.5f;
  const Tensor correction = test::random_tensor({8}, DType::kF32, 9), &weight = model.vectors.at(moe.router.module + ".weight");
  model.vectors[moe.router.correction] = correction;

  const TokenGroup group = routed_tokens(model, 200, DType::kF32);

  const kernels::RouteRule rule{
      .kind = kernels::RouteRule::Kind::kGroupedSigmoid, .top_k = 3, .normalize = true, .groups = 4, .top_groups = 2, .scaling = 2.5f};
  const Tensor logits = test::matmul_by_fma(group.x, weight, Tensor());
  const test::Routing expected = test::route_in_f64(logits, correction, rule);
  const auto* experts = group.experts.data<int32_t>();
  EXPECT_EQ(std::vector<int32_t>(experts, experts + group.experts.numel()), expected.experts);
  EXPECT_LT(test::relative_error(group.weights, expected.weights), 1e-6);
  EXPECT_NE(test::route_in_f64(logits, Tensor(), rule).experts, expected.experts) << "the correction changes nothing here";
}

TEST(CountTokens, AddsToWhatIsThere) {
  TokenGroup group;
  group.experts = Tensor::empty({3, 2}, DType::kI32);
  const std::vector<int32_t> chosen{0, 3, 1, 3, 0, 3};
  std::copy(chosen.begin(), chosen.end(), group.experts.data<int32_t>());
  std::vector<int64_t> counts{10, 0, 0, 1};

  count_tokens(group, counts);

  EXPECT_EQ(counts, (std::vector<int64_t>{12, 1, 0, 4}));
}

}  // namespace
}  // namespace ptq::layers
