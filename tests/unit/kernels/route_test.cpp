#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using Kind = RouteRule::Kind;
using test::random_tensor, test::same_bits, test::tensor_of, test::values_of;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  Tensor experts, weights;
  std::vector<int32_t> expert_list() const { return {experts.data<int32_t>(), experts.data<int32_t>() + experts.numel()}; }
};
Result routed(const Tensor& logits, const RouteRule& rule, const Tensor& correction = {}) {
  Result result{Tensor::empty({logits.dim(0), rule.top_k}, DType::kI32), Tensor::empty({logits.dim(0), rule.top_k}, DType::kF32)};
  route(logits, correction, rule, result.experts, result.weights);
  return result;
}
void expect_as_reference(const Tensor& logits, const RouteRule& rule, const Tensor& correction = {}) {
  const test::Routing expected = test::route_in_f64(logits, correction, rule);
  const Result result = routed(logits, rule, correction);
  EXPECT_EQ(result.expert_list(), expected.experts);
  EXPECT_LT(test::relative_error(result.weights, expected.weights), 1e-6);
}
std::vector<RouteRule> one_of_each_kind() {
  return {{.kind = Kind::kSoftmax, .top_k = 4, .normalize = true},
          {.kind = Kind::kTopKSoftmax, .top_k = 4},
          {.kind = Kind::kSigmoid, .top_k = 4},
          {.kind = Kind::kGroupedSigmoid, .top_k = 4, .normalize = true, .groups = 6, .top_groups = 3, .scaling = 2.5f}};
}

TEST(Route, AgreesWithF64) {
  for (RouteRule rule : one_of_each_kind())
    for (const bool normalize : {false, true})
      for (const int64_t top_k : {1, 4, 12})
        for (const int64_t experts : {24, 66}) {
          rule.top_k = top_k;
          rule.normalize = normalize && (rule.kind == Kind::kSoftmax || rule.kind == Kind::kGroupedSigmoid);
          expect_as_reference(random_tensor({37, experts}, DType::kF32, 1, 2.0f), rule);
        }
}

TEST(Route, AllExpertsMayBeChosen) {
  for (RouteRule rule : one_of_each_kind()) {
    rule.top_k = 6;
    rule.top_groups = rule.groups;
    const Result result = routed(random_tensor({1, 6}, DType::kF32, 2), rule);
    EXPECT_EQ(result.expert_list(), (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  }
}

TEST(Route, CorrectionDecidesWhoIsChosenButNotTheWeights) {
  const Tensor logits = random_tensor({33, 24}, DType::kF32, 3);
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t groups : {1, 4, 24})
      expect_as_reference(logits,
                          {.kind = Kind::kGroupedSigmoid,
                           .top_k = 3,
                           .normalize = true,
                           .groups = groups,
                           .top_groups = std::min<int64_t>(3, groups),
                           .scaling = 2.5f},
                          random_tensor({24}, dtype, 4));
}

TEST(Route, NegativeChoicesOfTheKeptGroupsBeatTheOtherGroups) {
  // All choices are below 0: were the experts of dropped groups given the choice 0 instead of none, they would win.
  const Tensor logits = tensor_of({0, 1, 2, 3}, {1, 4}), correction = tensor_of({-5, -5, -2, -9}, {4});

  const Result result = routed(logits, {.kind = Kind::kGroupedSigmoid, .top_k = 2, .groups = 2, .top_groups = 1}, correction);

  EXPECT_EQ(result.expert_list(), (std::vector<int32_t>{0, 1}));
}

TEST(Route, AGroupCountsItsTwoBest) {
  // Group 0 has the best expert, group 1 the best pair.
  const Tensor logits = tensor_of({3, -9, -9, 2, 2, -9}, {1, 6});

  const Result result = routed(logits, {.kind = Kind::kGroupedSigmoid, .top_k = 2, .groups = 2, .top_groups = 1});

  EXPECT_EQ(result.expert_list(), (std::vector<int32_t>{3, 4}));
}

TEST(Route, EqualScoresGoToTheLowerExpert) {
  for (const RouteRule& rule : one_of_each_kind()) {
    const Result result = routed(Tensor::zeros({2, 24}, DType::kF32), rule);
    EXPECT_EQ(result.expert_list(), (std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3})) << static_cast<int>(rule.kind);
  }
  const Tensor logits = tensor_of({1, 5, 5, 0, 5, 1}, {1, 6});
  EXPECT_EQ(routed(logits, {.kind = Kind::kSigmoid, .top_k = 2}).expert_list(), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(routed(logits, {.kind = Kind::kTopKSoftmax, .top_k = 4}).expert_list(), (std::vector<int32_t>{0, 1, 2, 4}));
}

TEST(Route, WeightsAreThoseOfTheFormulas) {
  const Tensor logits = tensor_of({0, std::log(2.0f), std::log(5.0f)}, {1, 3});  // softmax 1/8, 2/8, 5/8; sigmoid 1/2, 2/3, 5/6
  const auto weights = [&](const RouteRule& rule) { return values_of(routed(logits, rule).weights); };

  EXPECT_FLOAT_EQ(weights({.kind = Kind::kSoftmax, .top_k = 2})[0], 2.0f / 8);
  EXPECT_FLOAT_EQ(weights({.kind = Kind::kSoftmax, .top_k = 2, .normalize = true})[0], 2.0f / 7);
  EXPECT_FLOAT_EQ(weights({.kind = Kind::kTopKSoftmax, .top_k = 2})[1], 5.0f / 7);
  EXPECT_FLOAT_EQ(weights({.kind = Kind::kSigmoid, .top_k = 2})[1], 5.0f / 6);
  EXPECT_FLOAT_EQ(weights({.kind = Kind::kGroupedSigmoid, .top_k = 2, .scaling = 3.0f})[0], 2.0f);
  EXPECT_FLOAT_EQ(weights({.kind = Kind::kGroupedSigmoid, .top_k = 2, .normalize = true, .scaling = 3.0f})[0], 4.0f / 3);
}

TEST(Route, AnyLogitsGiveDistinctExperts) {
  std::vector<float> values = values_of(random_tensor({40, 24}, DType::kF32, 5));
  const std::vector<float> oddities = {kNaN, -kNaN, kInfinity, -kInfinity, 3.4e38f, -3.4e38f, 0.0f};
  for (size_t i = 0; i < values.size(); i += 3) values[i] = oddities[i / 3 % oddities.size()];
  std::fill_n(values.begin(), 24, kNaN);
  std::fill_n(values.begin() + 24, 24, -kInfinity);
  std::fill_n(values.begin() + 48, 24, kInfinity);

  for (const RouteRule& rule : one_of_each_kind()) {
    const std::vector<int32_t> experts = routed(tensor_of(values, {40, 24}), rule).expert_list();
    for (size_t t = 0; t < 40; ++t) {
      const std::set<int32_t> distinct(experts.begin() + static_cast<int64_t>(4 * t), experts.begin() + static_cast<int64_t>(4 * t + 4));
      EXPECT_EQ(distinct.size(), 4) << t;
      EXPECT_GE(*distinct.begin(), 0);
      EXPECT_LT(*distinct.rbegin(), 24);
    }
  }
}

TEST(Route, ANaNLogitShowsInTheWeights) {
  std::vector<float> values(24, 1.0f);
  values[17] = kNaN;
  for (const RouteRule& rule : one_of_each_kind()) {
    bool seen = false;
    for (const float weight : values_of(routed(tensor_of(values, {1, 24}), rule).weights)) seen |= std::isnan(weight);
    EXPECT_TRUE(seen) << static_cast<int>(rule.kind);
  }
}

TEST(Route, DoesNotDependOnInstructionSetThreadsOrSplitting) {
  const Tensor logits = random_tensor({75, 66}, DType::kF32, 6, 3.0f);
  for (const RouteRule& rule : one_of_each_kind()) {
    const Result together = routed(logits, rule);
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard isa_guard(isa);
      const test::ThreadsGuard threads_guard(2);
      const Result again = routed(logits, rule);
      EXPECT_TRUE(same_bits(again.experts, together.experts) && same_bits(again.weights, together.weights)) << static_cast<int>(isa);
    }
    const Result part = routed(logits.rows(20, 53), rule);
    EXPECT_TRUE(same_bits(part.experts, together.experts.rows(20, 53)) && same_bits(part.weights, together.weights.rows(20, 53)));
  }
}

TEST(Route, RejectsRulesThatCannotBe) {
  const Tensor logits = Tensor::zeros({1, 6}, DType::kF32);

  EXPECT_THROW(routed(logits, {.top_k = 7}), Error);
  EXPECT_THROW(routed(logits, {.kind = Kind::kGroupedSigmoid, .top_k = 1, .groups = 4, .top_groups = 1}), Error);
  EXPECT_THROW(routed(logits, {.kind = Kind::kGroupedSigmoid, .top_k = 3, .groups = 3, .top_groups = 1}), Error);
  EXPECT_THROW(routed(logits, {.top_k = 1}, Tensor::zeros({6}, DType::kF32)), Error);
}

}  // namespace
}  // namespace ptq::kernels
