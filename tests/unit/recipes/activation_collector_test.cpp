#include "recipes/activation_collector.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/collected_rows.h"
#include "tests/support/reference_search.h"

namespace ptq::recipes {
namespace {

using test::tensor_of;
using test::values_of;

TEST(ActivationCollector, CollectsOverAllTokens) {
  const Tensor tokens = test::calibration_tokens(50, DType::kF32);
  const auto self = parallel::make_self_communicator();
  const InputStatistics found = test::collect(tokens, 2, *self, *self);
  const std::vector<float> values = values_of(tokens);
  const int64_t count = tokens.dim(0);
  for (int64_t c = 0; c < 50; ++c) {
    double sum = 0;
    float most = 0;
    for (int64_t t = 0; t < count; ++t) {
      const float value = std::fabs(values[static_cast<size_t>(t * 50 + c)]);
      sum += static_cast<double>(value);
      most = std::max(most, value);
    }
    EXPECT_NEAR(found.mean_abs.data<float>()[c], sum / static_cast<double>(count), 1e-6) << c;
    EXPECT_EQ(found.amax.data<float>()[c], most) << c;
  }
  ASSERT_EQ(found.gram.size(), 1u);
  EXPECT_LT(test::relative_error(found.gram[0].values, test::gram_in_f64(tokens)), 1e-5);
  EXPECT_TRUE(test::same_bits(found.sample, tokens)) << "so few are all of the sample, in their order";
}

TEST(ActivationCollector, GivesTheSameBitsInAnyMicroBatches) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const Tensor tokens = test::calibration_tokens(300, dtype);
    const auto self = parallel::make_self_communicator();
    const InputStatistics one = test::collect(tokens, 7, *self, *self);
    for (const int64_t places : {1, 2, 3}) EXPECT_TRUE(test::same_statistics(one, test::collect(tokens, places, *self, *self))) << places;
  }
}

class CollectorOfExperts : public ::testing::Test {
 protected:
  CollectorOfExperts() {
    layer_.linears.resize(2);
    layer_.linears[0].feeds_down = true;
    layer_.index = 3;
    layers::BlockSpec block;
    layers::MoeSpec moe;
    moe.experts.assign(3, {.up = 0, .down = 1});
    block.body = moe;
    layer_.blocks.push_back(block);
  }
  CollectorOptions options(bool keeps) {
    return {[](const layers::LayerSpec&, int) { return InputNeeds{}; },
            [keeps](const layers::LayerSpec&) { return keeps; },
            self_.get(),
            self_.get(),
            {4}};
  }
  std::unique_ptr<parallel::Communicator> self_ = parallel::make_self_communicator();
  layers::LayerSpec layer_;
  SearchSeconds seconds_;
};

TEST_F(CollectorOfExperts, KeepsTheTokensThatTheyWereSentUntilTaken) {
  ActivationCollector collector(options(true), seconds_);
  const std::vector<int64_t> positions{1, 3};
  const std::vector<float> weights{0.25f, 0.5f};
  const layers::ExpertVisits visits{false, positions.data(), weights.data()}, forced{true, positions.data(), weights.data()};
  collector.expert_input(layer_, 2, 0, tensor_of({1, 2, 3, 4}, {2, 2}), visits);
  collector.expert_input(layer_, 2, 1, tensor_of({5, 6}, {2, 1}), visits);
  collector.expert_input(layer_, 2, 0, tensor_of({9, 9, 9, 9}, {2, 2}), forced);

  const auto taken = collector.take_expert_tokens(layer_);

  ASSERT_EQ(taken.size(), 1u);
  const ExpertTokens& tokens = taken.at(2);
  EXPECT_EQ(tokens.positions, positions);
  EXPECT_EQ(tokens.weights, weights);
  ASSERT_EQ(tokens.inputs.size(), 1u) << "forced tokens are no part of the model's own";
  EXPECT_EQ(values_of(tokens.inputs[0]), (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(values_of(tokens.inner[0]), (std::vector<float>{5, 6}));
  EXPECT_TRUE(collector.take_expert_tokens(layer_).empty());
}

TEST_F(CollectorOfExperts, KeepsNothingThatNobodyAsksFor) {
  ActivationCollector collector(options(false), seconds_);
  const int64_t position = 0;
  const float weight = 1;
  collector.expert_input(layer_, 0, 0, tensor_of({1}, {1, 1}), {false, &position, &weight});
  layers::Batch batch = layers::make_batch(0, {1});
  collector.linear_input(layer_, 0, tensor_of({1}, {1, 1}), batch);

  EXPECT_TRUE(collector.take_expert_tokens(layer_).empty());
  EXPECT_THROW(collector.channels(layer_, 0), Error);
  EXPECT_FALSE(collector.value_amax(layer_).defined());
}

TEST_F(CollectorOfExperts, KnowsTheLargestValueOfEveryChannel) {
  ActivationCollector collector(options(false), seconds_);
  collector.key_value(layer_, tensor_of({1, -7, 3, 2}, {2, 2}));
  collector.key_value(layer_, tensor_of({-4, 0}, {1, 2}));
  EXPECT_EQ(values_of(collector.value_amax(layer_)), (std::vector<float>{4, 7}));
  collector.forget(layer_);
  EXPECT_FALSE(collector.value_amax(layer_).defined());
}

}  // namespace
}  // namespace ptq::recipes
