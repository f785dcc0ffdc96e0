#include "recipes/minmax.h"

#include <gtest/gtest.h>

#include "recipes/observer.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/recipes/tiny_model.h"

namespace ptq::recipes {
namespace {

/// q 1, k 2, v 3, o 4, gate 5, up 6, down 7; inputs 10, 20, 30, 40.
LayerStatistics counted() {
  LayerStatistics statistics;
  statistics.weight_amax = {1, 2, 3, 4, 5, 6, 7};
  statistics.input_amax = {{0, 10.0f}, {1, 20.0f}, {2, 30.0f}, {3, 40.0f}};
  return statistics;
}

std::map<std::string, Decision> all(const layers::ModelSpec& model, Format format) {
  std::map<std::string, Decision> decisions;
  for (const auto& linear : model.layers[0].linears) decisions[linear.module] = {format, ""};
  return decisions;
}

TEST(MinmaxScales, Fp8GivesEachWeightItsOwn) {
  const auto model = test::tiny_llama(1);
  std::vector<ScaleNote> notes;

  const auto scales = minmax_scales(model.layers[0], all(model, Format::kFp8), counted(), notes);

  const std::vector<float> inputs{10, 10, 10, 20, 30, 30, 40};
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(scales[i].weight_scale, static_cast<float>(i + 1) / 448.0f) << i;
    EXPECT_EQ(scales[i].input_scale, inputs[i] / 448.0f) << i;
  }
  EXPECT_TRUE(notes.empty());
}

TEST(MinmaxScales, Nvfp4GivesFusedWeightsTheLargestOne) {
  const auto model = test::tiny_llama(1);
  std::vector<ScaleNote> notes;

  for (const Format format : {Format::kNvfp4, Format::kNvfp4WeightOnly}) {
    const auto scales = minmax_scales(model.layers[0], all(model, format), counted(), notes);

    const std::vector<float> weights{3, 3, 3, 4, 6, 6, 7}, inputs{10, 10, 10, 20, 30, 30, 40};
    for (size_t i = 0; i < 7; ++i) {
      EXPECT_EQ(scales[i].weight_scale, weights[i] / 2688.0f) << i;
      EXPECT_EQ(scales[i].input_scale, format == Format::kNvfp4 ? inputs[i] / 2688.0f : 1.0f) << i;
    }
  }
  EXPECT_TRUE(notes.empty());
}

TEST(MinmaxScales, LeaveUnquantizedLinearsAlone) {
  const auto model = test::tiny_llama(1);
  auto decisions = all(model, Format::kFp8);
  decisions["model.layers.0.self_attn.o_proj"].format = Format::kNone;
  LayerStatistics statistics = counted();
  statistics.input_amax.erase(1);
  std::vector<ScaleNote> notes;

  const auto scales = minmax_scales(model.layers[0], decisions, statistics, notes);

  EXPECT_EQ(scales[3].weight_scale, 1.0f);
  EXPECT_EQ(scales[3].input_scale, 1.0f);
}

TEST(MinmaxScales, ZerosTakeTheFormatsLargestAndAreNoted) {
  const auto model = test::tiny_llama(1);
  LayerStatistics statistics = counted();
  statistics.weight_amax[3] = 0;
  statistics.input_amax[1] = 0;
  std::vector<ScaleNote> fp8_notes, nvfp4_notes;

  const auto fp8 = minmax_scales(model.layers[0], all(model, Format::kFp8), statistics, fp8_notes);
  const auto nvfp4 = minmax_scales(model.layers[0], all(model, Format::kNvfp4), statistics, nvfp4_notes);

  EXPECT_EQ(fp8[3].weight_scale, 1.0f);
  EXPECT_EQ(fp8[3].input_scale, 1.0f);
  EXPECT_EQ(nvfp4[3].weight_scale, 6.0f / 2688.0f);
  EXPECT_EQ(nvfp4[3].input_scale, 6.0f / 2688.0f);
  for (const auto& notes : {fp8_notes, nvfp4_notes}) {
    ASSERT_EQ(notes.size(), 2u);
    EXPECT_EQ(notes[0].module, "model.layers.0.self_attn.o_proj");
    EXPECT_NE(notes[0].note.find("weight"), std::string::npos);
    EXPECT_NE(notes[1].note.find("input"), std::string::npos);
  }
}

TEST(MinmaxScales, AZeroWeightAmongFusedOnesFollowsThem) {
  const auto model = test::tiny_llama(1);
  LayerStatistics statistics = counted();
  statistics.weight_amax[2] = 0;
  std::vector<ScaleNote> notes;

  const auto scales = minmax_scales(model.layers[0], all(model, Format::kNvfp4), statistics, notes);

  EXPECT_EQ(scales[2].weight_scale, 2.0f / 2688.0f);
  EXPECT_TRUE(notes.empty());
}

TEST(KvScale, IsTheMaximumOver448) {
  std::vector<ScaleNote> notes;

  EXPECT_EQ(kv_scale(3.5f, "k", notes), 3.5f / 448.0f);
  EXPECT_TRUE(notes.empty());
  EXPECT_EQ(kv_scale(0.0f, "k", notes), 1.0f);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0].module, "k");
}

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

}  // namespace
}  // namespace ptq::recipes
