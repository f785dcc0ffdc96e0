#include "recipes/minmax.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/recipes/tiny_model.h"
#include "tests/unit/recipes/tiny_moe.h"

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
  for (const auto& linear : model.layers[0].linears) decisions[linear.module] = {{format}, ""};
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

TEST(MinmaxScales, W4A8SharesTheScaleOfItsWeightsAsFp8) {
  const auto model = test::tiny_llama(1);
  std::vector<ScaleNote> notes;

  const auto scales = minmax_scales(model.layers[0], all(model, Format::kInt4Fp8), counted(), notes);

  const std::vector<float> weights{3, 3, 3, 4, 6, 6, 7}, inputs{10, 10, 10, 20, 30, 30, 40};
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(scales[i].weight_scale, weights[i] / 7.0f * 7.0f / 448.0f) << i;
    EXPECT_EQ(scales[i].input_scale, inputs[i] / 448.0f) << i;
  }
}

TEST(MinmaxScales, Int8HasAScaleForItsInputsAlone) {
  const auto model = test::tiny_llama(1);
  std::vector<ScaleNote> notes;

  const auto scales = minmax_scales(model.layers[0], all(model, Format::kInt8), counted(), notes);

  EXPECT_EQ(scales[0].input_scale, 10.0f / 127.0f);
  EXPECT_EQ(scales[0].weight_scale, 1.0f);
}

TEST(MinmaxScales, LeaveUnquantizedLinearsAlone) {
  const auto model = test::tiny_llama(1);
  auto decisions = all(model, Format::kFp8);
  decisions["model.layers.0.self_attn.o_proj"].encoding.format = Format::kNone;
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

/// One layer of two experts: linears gate, up, down of expert 0, then of 1, with weight maxima 1, 2, 3, 4, 5, 6.
struct TwoExperts {
  explicit TwoExperts(Format format, bool is_stacked = false) {
    spec = test::start_model("", 1);
    layers::LayerSpec& layer = spec.layers[0];
    layers::MoeSpec moe = test::start_moe(layer, "mlp.gate", "mlp.experts", 2);
    if (is_stacked)
      test::add_stacked_experts(layer, moe);
    else
      test::add_experts(layer, moe, {"gate_proj", "up_proj", "down_proj"});
    test::finish_moe(layer, std::move(moe));
    for (size_t i = 0; i < layer.linears.size(); ++i) statistics.weight_amax.push_back(static_cast<float>(i + 1));
    statistics.experts = {{100, 0, 10.0f, 30.0f}, {50, 0, 20.0f, 7.0f}};
    decisions = all(spec, format);
  }
  std::vector<LinearScales> scales() { return minmax_scales(spec.layers[0], decisions, statistics, notes); }

  layers::ModelSpec spec;
  LayerStatistics statistics;
  std::map<std::string, Decision> decisions;
  std::vector<ScaleNote> notes;
};

TEST(MinmaxScales, AnExpertsGateAndUpShareAScaleInEveryFormat) {
  for (const Format format : {Format::kFp8, Format::kNvfp4, Format::kNvfp4WeightOnly}) {
    TwoExperts experts(format);
    const float step = format == Format::kFp8 ? 448.0f : 2688.0f;

    const auto scales = experts.scales();

    const std::vector<float> weights{2, 2, 3, 5, 5, 6};
    for (size_t i = 0; i < 6; ++i) EXPECT_EQ(scales[i].weight_scale, weights[i] / step) << i;
    EXPECT_TRUE(experts.notes.empty());
  }
}

TEST(MinmaxScales, AllExpertsOfALayerShareTheirInputScales) {
  for (const Format format : {Format::kFp8, Format::kNvfp4}) {
    TwoExperts experts(format), unseen(format), stacked(format, true);
    unseen.statistics.experts.push_back({});  // an expert without any token changes nothing
    const float step = format == Format::kFp8 ? 448.0f : 2688.0f;

    for (TwoExperts* layer : {&experts, &unseen, &stacked}) {
      const auto scales = layer->scales();

      for (size_t i = 0; i < scales.size(); ++i)
        EXPECT_EQ(scales[i].input_scale, (layer->spec.layers[0].linears[i].feeds_down ? 20.0f : 30.0f) / step) << i;
    }
  }
}

TEST(MinmaxScales, StackedExpertsHaveOneScaleForAll) {
  TwoExperts experts(Format::kFp8, true);

  const auto scales = experts.scales();

  ASSERT_EQ(scales.size(), 2u);
  EXPECT_EQ(scales[0].weight_scale, 1.0f / 448.0f);
  EXPECT_EQ(scales[1].weight_scale, 2.0f / 448.0f);
}

TEST(MinmaxScales, AnExpertNoTokenReachedHasItsLayersInputScale) {
  TwoExperts experts(Format::kNvfp4);
  experts.statistics.experts[1] = {};

  const auto scales = experts.scales();

  EXPECT_EQ(scales[3].input_scale, 10.0f / 2688.0f);
  EXPECT_EQ(scales[5].input_scale, 30.0f / 2688.0f);
  EXPECT_TRUE(experts.notes.empty()) << "coverage tells of it";
}

TEST(MinmaxScales, ALayerWhoseExpertsSawNothingIsABug) {
  TwoExperts experts(Format::kFp8), weights_only(Format::kNvfp4WeightOnly);
  experts.statistics.experts = {{}, {}};
  weights_only.statistics.experts.clear();

  test::expect_error(ErrorKind::kBug, "model.layers.0.mlp.experts.0.gate_proj", [&] { experts.scales(); });
  EXPECT_EQ(weights_only.scales()[0].input_scale, 1.0f);
}

TEST(MinmaxScales, AnExpertOfZerosIsNotedAndInputsOfZerosOnce) {
  TwoExperts experts(Format::kFp8);
  experts.statistics.weight_amax = {0, 0, 3, 4, 0, 6};
  for (auto& expert : experts.statistics.experts) expert.down_input_amax = 0;

  const auto scales = experts.scales();

  EXPECT_EQ(scales[0].weight_scale, 1.0f);
  EXPECT_EQ(scales[1].weight_scale, 1.0f);
  EXPECT_EQ(scales[4].weight_scale, 4.0f / 448.0f) << "its gate is not zero";
  EXPECT_EQ(scales[2].input_scale, 1.0f);
  EXPECT_EQ(scales[5].input_scale, 1.0f);
  ASSERT_EQ(experts.notes.size(), 3u);
  EXPECT_EQ(experts.notes[0].module, "model.layers.0.mlp.experts.0.gate_proj");
  EXPECT_EQ(experts.notes[1].module, "model.layers.0.mlp.experts.0.up_proj");
  EXPECT_NE(experts.notes[2].note.find("the input of all experts"), std::string::npos);
}

TEST(KvScale, IsTheMaximumOver448) {
  std::vector<ScaleNote> notes;

  EXPECT_EQ(kv_scale(3.5f, "k", notes), 3.5f / 448.0f);
  EXPECT_TRUE(notes.empty());
  EXPECT_EQ(kv_scale(0.0f, "k", notes), 1.0f);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0].module, "k");
}

}  // namespace
}  // namespace ptq::recipes
