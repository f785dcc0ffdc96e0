#include "recipes/smoothing.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/replayed_ranks.h"
#include "tests/unit/recipes/search_case.h"

namespace ptq::recipes {
namespace {

using test::tensor_of;
using test::values_of;

InputStatistics magnitudes(const std::vector<float>& values) {
  InputStatistics input;
  const auto count = static_cast<int64_t>(values.size());
  input.mean_abs = tensor_of(values, {count});
  input.amax = tensor_of(values, {count});
  return input;
}
Tensor ones(int64_t count) { return tensor_of(std::vector<float>(static_cast<size_t>(count), 1.0f), {count}); }

TEST(SmoothingFactors, OfExponentZeroAreOnes) {
  EXPECT_EQ(values_of(smoothing_factors(SmoothingRule::kAwq, magnitudes({0.5f, 8, 3}), ones(3), {}, {0.0})), (std::vector<float>{1, 1, 1}));
}

TEST(SmoothingFactors, GrowWithTheirChannelsAroundOne) {
  const std::vector<float> awq = values_of(smoothing_factors(SmoothingRule::kAwq, magnitudes({1, 4, 16}), ones(3), {}, {0.5}));
  EXPECT_EQ(awq, (std::vector<float>{0.5f, 1, 2}));
  // max|x|^½ / max|w|^½.
  const std::vector<float> quant =
      values_of(smoothing_factors(SmoothingRule::kSmoothQuant, magnitudes({1, 4, 16}), tensor_of({1, 4, 1}, {3}), {}, {0.5}));
  EXPECT_EQ(quant, (std::vector<float>{0.5f, 0.5f, 2}));
}

TEST(SmoothingFactors, OfDeadChannelsAreOne) {
  const Tensor weights = tensor_of({1, 1, 0, 1}, {4});
  for (const SmoothingRule rule : {SmoothingRule::kAwq, SmoothingRule::kSmoothQuant}) {
    const std::vector<float> factors = values_of(smoothing_factors(rule, magnitudes({4, 0, 64, 1}), weights, {}, {1.0}));
    EXPECT_EQ(factors, (std::vector<float>{2, 1, 1, 0.5f})) << "neither they nor what they would be count among the extremes";
    EXPECT_EQ(values_of(smoothing_factors(rule, magnitudes({0, 0}), ones(2), {}, {1.0})), (std::vector<float>{1, 1}));
  }
}

TEST(SmoothingFactors, MayBePowersOfTwoOrFourAlone) {
  const std::vector<float> free = values_of(smoothing_factors(SmoothingRule::kAwq, magnitudes({1, 7, 90, 0, 3}), ones(5), {}, {0.9}));
  for (const int octaves : {1, 2}) {
    const std::vector<float> factors =
        values_of(smoothing_factors(SmoothingRule::kAwq, magnitudes({1, 7, 90, 0, 3}), ones(5), {.octaves = octaves}, {0.9}));
    for (size_t c = 0; c < factors.size(); ++c) {
      const float exponent = std::log2(factors[c]) / static_cast<float>(octaves);
      EXPECT_EQ(exponent, std::round(exponent)) << factors[c];
      EXPECT_LE(std::fabs(std::log2(factors[c] / free[c])), 0.5001f * static_cast<float>(octaves)) << "the nearest";
    }
  }
}

TEST(SmoothingFactors, OfTiedChannelsAreEqual) {
  const FactorLimits ties{.ties = {0, 1, 0, 1}};
  const std::vector<float> quant =
      values_of(smoothing_factors(SmoothingRule::kSmoothQuant, magnitudes({1, 0.5f, 16, 4}), ones(4), ties, {1.0}));
  EXPECT_EQ(quant, (std::vector<float>{2, 0.5f, 2, 0.5f})) << "by the largest of the tied";
  const std::vector<float> awq = values_of(smoothing_factors(SmoothingRule::kAwq, magnitudes({1, 9, 16, 4}), ones(4), ties, {0.7}));
  EXPECT_EQ(awq[0], awq[2]);
  EXPECT_EQ(awq[1], awq[3]);
  EXPECT_NE(awq[0], awq[1]);
}

struct Choice {
  SmoothingRule rule;
  Encoding encoding;
};
const std::vector<Choice> kChoices{{SmoothingRule::kAwq, {Format::kInt4, Dialect::kModelOpt, 16}},
                                   {SmoothingRule::kAwq, {Format::kInt4Fp8, Dialect::kModelOpt, 16}},
                                   {SmoothingRule::kAwq, {Format::kNvfp4}},
                                   {SmoothingRule::kAwq, {Format::kNvfp4WeightOnly}},
                                   {SmoothingRule::kSmoothQuant, {Format::kInt8}}};
constexpr int64_t kChannels = 96, kRows = 520;

/// Chosen by so many ranks, each with a share of the rows of two weights; every rank must choose the same.
ChosenSmoothing choose(const Choice& choice, int ranks) {
  const Tensor x = test::uneven_tokens(60, kChannels);
  const InputStatistics input = test::statistics_of(x);
  const Tensor first = test::random_tensor({kRows, kChannels}, DType::kBF16, 5, 0.1f),
               second = test::random_tensor({8, kChannels}, DType::kBF16, 6, 0.2f);
  Tensor amax = Tensor::zeros({kChannels}, DType::kF32);
  for (const Tensor* weight : {&first, &second}) kernels::column_amax(*weight, amax);
  std::vector<ChosenSmoothing> chosen(static_cast<size_t>(ranks));
  test::run_as_ranks(ranks, [&](parallel::Communicator& rank) {
    std::vector<SmoothedWeight> weights;
    for (const Tensor* weight : {&first, &second}) {
      const parallel::Range mine = parallel::even_share(weight->dim(0), rank.size(), rank.rank());
      weights.push_back({choice.encoding, weight->rows(mine.begin, mine.end), mine.begin, weight->dim(0), amax});
    }
    chosen[static_cast<size_t>(rank.rank())] = choose_smoothing(choice.rule, weights, input, amax, {}, 20, {}, rank);
  });
  for (const ChosenSmoothing& other : chosen) EXPECT_TRUE(test::same_bits(other.factors, chosen[0].factors));
  return chosen[0];
}

TEST(ChooseSmoothing, LosesLessThanNoSmoothing) {
  for (const Choice& choice : kChoices) {
    const ChosenSmoothing chosen = choose(choice, 1);
    EXPECT_LT(chosen.loss, 0.95 * chosen.plain_loss) << info(choice.encoding.format).name;
    EXPECT_GT(chosen.exponents.alpha, 0.0) << info(choice.encoding.format).name;
    for (const float factor : values_of(chosen.factors)) EXPECT_TRUE(factor >= 1e-4f && factor <= 1e4f);
  }
}

TEST(ChooseSmoothing, IsTheSameHoweverRowsAreSplit) {
  for (const Choice& choice : kChoices) {
    const ChosenSmoothing one = choose(choice, 1);
    for (const int ranks : {2, 3}) {
      const ChosenSmoothing many = choose(choice, ranks);
      EXPECT_TRUE(test::same_bits(one.factors, many.factors)) << info(choice.encoding.format).name << " on " << ranks;
      EXPECT_EQ(one.loss, many.loss);
      EXPECT_EQ(one.exponents.alpha, many.exponents.alpha);
    }
  }
}

TEST(ChooseSmoothing, CountsWhatElseDependsOnTheFactors) {
  const Tensor x = test::uneven_tokens(60, kChannels);
  const Tensor weight = test::random_tensor({16, kChannels}, DType::kBF16, 5, 0.1f);
  Tensor amax = Tensor::zeros({kChannels}, DType::kF32);
  kernels::column_amax(weight, amax);
  const auto self = parallel::make_self_communicator();
  const std::vector<double> alphas = shared_alphas(20);
  ASSERT_EQ(alphas.size(), 11u);
  for (const size_t best : {size_t{0}, size_t{7}, size_t{10}}) {
    std::vector<double> others(alphas.size(), 1e9);
    others[best] = 0;
    const std::vector<SmoothedWeight> weights{{{Format::kInt4, Dialect::kModelOpt, 16}, weight, 0, 16, amax}};
    EXPECT_EQ(choose_smoothing(SmoothingRule::kAwq, weights, test::statistics_of(x), amax, {}, 20, others, *self).exponents.alpha,
              alphas[best]);
  }
}

TEST(NormRatio, IsWhatANormReallyGaveUp) {
  const Tensor before = tensor_of({1, -2, 0, 3}, {4}), after = tensor_of({0.5f, -4, 0, 0}, {4});
  EXPECT_EQ(values_of(norm_ratio(before, after, false)), (std::vector<float>{2, 0.5f, 1, 1}));
  EXPECT_EQ(values_of(norm_ratio(tensor_of({1, -0.5f}, {2}), tensor_of({0, 0}, {2}), true)), (std::vector<float>{2, 0.5f}));
}

}  // namespace
}  // namespace ptq::recipes
