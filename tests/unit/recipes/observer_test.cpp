#include "recipes/observer.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/reference_ops.h"
#include "tests/unit/recipes/tiny_model.h"
#include "tests/unit/recipes/tiny_moe.h"

namespace ptq::recipes {
namespace {

TEST(Observer, KeepsTheLargestOfAllBatches) {
  const auto model = test::tiny_llama(2);
  const layers::Batch batch = layers::make_batch(0, {1, 1});
  Observer observer;
  Tensor k = test::tensor_of({1, -6, 2, 3}, {2, 2}), v = test::tensor_of({0, 0, 0, -0.5f}, {2, 2});

  observer.linear_input(model.layers[1], 2, test::tensor_of({1, -7, 2, 3}, {2, 2}), batch);
  observer.linear_input(model.layers[1], 2, test::tensor_of({1, -4, 5, 3}, {2, 2}, DType::kBF16), batch);
  observer.linear_input(model.layers[0], 0, test::tensor_of({0, 0}, {2, 1}), batch);
  observer.key_value(model.layers[1], k, v, batch);

  EXPECT_EQ(observer.maxima().at(1).input_amax, (std::map<int, float>{{2, 7.0f}}));
  EXPECT_EQ(observer.maxima().at(0).input_amax, (std::map<int, float>{{0, 0.0f}}));
  EXPECT_EQ(observer.maxima().at(1).key_amax, 6.0f);
  EXPECT_EQ(observer.maxima().at(1).value_amax, 0.5f);
  EXPECT_EQ(observer.maxima().at(0).key_amax, -1.0f) << "no key was seen";
  EXPECT_FALSE(observer.error());
}

TEST(Observer, RemembersWhereTheFirstNanWas) {
  const auto model = test::tiny_llama(1);
  const layers::Batch batch = layers::make_batch(100, {2, 2});
  Observer observer;

  observer.linear_input(model.layers[0], 3, test::tensor_of({1, 2, 3, std::numeric_limits<float>::quiet_NaN()}, {4, 1}), batch);
  observer.linear_input(model.layers[0], 0, test::tensor_of({std::numeric_limits<float>::infinity(), 2, 3, 4}, {4, 1}), batch);

  ASSERT_TRUE(observer.error());
  EXPECT_EQ(observer.error()->kind(), ErrorKind::kData);
  EXPECT_NE(observer.error()->report().find("model.layers.0.mlp.down_proj, sample 101"), std::string::npos) << observer.error()->report();
}

/// The linear of an expert that reads what the layer's hidden state gives (gate or up), and the one that reads what these give.
int up_of(const layers::LayerSpec& layer, int expert) { return layer.moe()->experts[static_cast<size_t>(expert)].up; }
int down_of(const layers::LayerSpec& layer, int expert) { return layer.moe()->experts[static_cast<size_t>(expert)].down; }

TEST(Observer, KeepsTheLargestInputOfEachExpert) {
  const auto model = test::tiny_qwen3_moe(2, 4);
  const layers::LayerSpec& layer = model.layers[1];
  Observer observer;

  observer.expert_input(layer, 2, up_of(layer, 2), test::tensor_of({1, -7, 2, 3}, {2, 2}), {});
  observer.expert_input(layer, 2, down_of(layer, 2), test::tensor_of({0.5f, -0.25f}, {2, 1}), {});
  observer.expert_input(layer, 2, up_of(layer, 2), test::tensor_of({6, 5}, {1, 2}, DType::kBF16), {});
  observer.expert_input(layer, 0, up_of(layer, 0), test::tensor_of({0, 0}, {1, 2}), {});

  const auto& experts = observer.maxima().at(1).experts;
  ASSERT_EQ(experts.size(), 4u);
  EXPECT_EQ(experts[2].up_input_amax, 7.0f);
  EXPECT_EQ(experts[2].down_input_amax, 0.5f);
  EXPECT_EQ(experts[0].up_input_amax, 0.0f);
  EXPECT_EQ(experts[0].down_input_amax, -1.0f) << "not seen";
  EXPECT_EQ(experts[1].up_input_amax, -1.0f);
  EXPECT_FALSE(observer.maxima().contains(0));
  EXPECT_TRUE(observer.maxima().at(1).input_amax.empty()) << "experts are kept apart from the layer's other linears";
  for (const auto& expert : experts) EXPECT_EQ(expert.tokens + expert.forced, 0) << "who was routed is counted by count()";
}

TEST(Observer, StackedExpertsAreSeenOneByOne) {
  const auto model = test::tiny_llama4(1, 3);
  const layers::LayerSpec& layer = model.layers[0];
  const layers::ExpertLinears& linears = layer.moe()->experts.front();
  Observer observer;

  observer.expert_input(layer, 0, linears.gate_up, test::tensor_of({3, -4}, {2, 1}), {});
  observer.expert_input(layer, 1, linears.down, test::tensor_of({9, 1}, {2, 1}), {});

  const auto& experts = observer.maxima().at(0).experts;
  EXPECT_EQ(experts[0].up_input_amax, 4.0f);
  EXPECT_EQ(experts[0].down_input_amax, -1.0f);
  EXPECT_EQ(experts[1].up_input_amax, -1.0f);
  EXPECT_EQ(experts[1].down_input_amax, 9.0f);
}

TEST(Observer, ForcedTokensAreCountedOnceAndTheirInputsMatter) {
  const auto model = test::tiny_qwen3_moe(1, 2);
  const layers::LayerSpec& layer = model.layers[0];
  Observer observer;

  observer.expert_input(layer, 1, up_of(layer, 1), test::tensor_of({1, 2, 3}, {3, 1}), {.forced = true});
  observer.expert_input(layer, 1, down_of(layer, 1), test::tensor_of({4, 5, 6}, {3, 1}), {.forced = true});
  observer.expert_input(layer, 1, up_of(layer, 1), test::tensor_of({8, 1}, {2, 1}), {.forced = true});
  observer.expert_input(layer, 1, down_of(layer, 1), test::tensor_of({1, 1}, {2, 1}), {.forced = true});

  const ExpertStatistics& expert = observer.maxima().at(0).experts[1];
  EXPECT_EQ(expert.forced, 5);
  EXPECT_EQ(expert.tokens, 0);
  EXPECT_EQ(expert.up_input_amax, 8.0f);
  EXPECT_EQ(expert.down_input_amax, 6.0f);
}

TEST(Observer, CountsAddUp) {
  const auto model = test::tiny_qwen3_moe(2, 3);
  Observer observer;

  observer.count(model.layers[0], {4, 0, 1});
  observer.count(model.layers[0], {10, 0, 2});
  observer.count(model.layers[1], {0, 0, 0});

  const auto& experts = observer.maxima().at(0).experts;
  EXPECT_EQ(experts[0].tokens, 14);
  EXPECT_EQ(experts[1].tokens, 0);
  EXPECT_EQ(experts[2].tokens, 3);
  EXPECT_EQ(experts[0].up_input_amax, -1.0f) << "this rank has none of the experts";
  EXPECT_EQ(observer.maxima().at(1).experts.size(), 3u);
}

TEST(Observer, RemembersInWhichExpertTheFirstNanWas) {
  const auto model = test::tiny_qwen3_moe(1, 2);
  const layers::LayerSpec& layer = model.layers[0];
  Observer observer;

  observer.expert_input(layer, 1, down_of(layer, 1), test::tensor_of({1, std::numeric_limits<float>::infinity()}, {2, 1}),
                        {.forced = true});
  observer.expert_input(layer, 0, up_of(layer, 0), test::tensor_of({std::numeric_limits<float>::quiet_NaN()}, {1, 1}), {});

  ASSERT_TRUE(observer.error());
  EXPECT_EQ(observer.error()->kind(), ErrorKind::kData);
  EXPECT_NE(observer.error()->report().find("model.layers.0.mlp.experts.1.down_proj, expert 1"), std::string::npos)
      << observer.error()->report();
}

}  // namespace
}  // namespace ptq::recipes
