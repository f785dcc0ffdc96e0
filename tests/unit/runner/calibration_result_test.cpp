#include "runner/calibration_result.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/expect_error.h"

namespace ptq::runner {
namespace {

Tensor factors(std::initializer_list<float> values) {
  Tensor tensor = Tensor::empty({static_cast<int64_t>(values.size())}, DType::kF32);
  std::copy(values.begin(), values.end(), tensor.data<float>());
  return tensor;
}

CalibrationResult layer_one() {
  CalibrationResult result;
  result.statistics.arrays["model.layers.1.mlp.down_proj/input_amax"] = {0.1f, -0.0f, 3e-41f};
  result.statistics.integers["model.layers.1.self_attn/key_channel_sums"] = {-7, int64_t{1} << 60};
  result.notes = {{"model.layers.1.mlp", "a scale of zero"}};
  result.coverage = {{1, "model.layers.1.mlp.experts", 4, {2}, {5, 6, 0, 8}, {0, 0, 1, 0}}};
  result.choices = {{1, "model.layers.1.mlp.gate_proj", {0.3, 0.1}, 0.7, 0.9}};
  result.folds.scale_rows("w", factors({0.5f, 0.5f}));
  return result;
}

TEST(CalibrationResult, ComesBackAsItWas) {
  const CalibrationResult back = unpack(pack(layer_one()), "here");

  EXPECT_EQ(back.statistics.arrays, layer_one().statistics.arrays);
  EXPECT_EQ(back.statistics.integers, layer_one().statistics.integers);
  EXPECT_EQ(back.notes[0].note, "a scale of zero");
  EXPECT_EQ(back.coverage[0].starved, std::vector<int>{2});
  EXPECT_EQ(back.coverage[0].tokens, (std::vector<int64_t>{5, 6, 0, 8}));
  EXPECT_EQ(back.coverage[0].forced, (std::vector<int64_t>{0, 0, 1, 0}));
  EXPECT_EQ(back.choices[0].exponents.beta, 0.1);
  EXPECT_EQ(back.choices[0].plain_loss, 0.9);
  EXPECT_EQ(back.folds.find("w")->rows, (std::vector<int8_t>{-1, -1}));
  EXPECT_EQ(pack(back), pack(layer_one()));
}

TEST(CalibrationResult, AddsUpInTheOrderOfLayersWhateverComesFirst) {
  CalibrationResult zero = layer_one();
  zero.coverage[0].layer = zero.choices[0].layer = 0;
  zero.notes.push_back({"model.layers.0.mlp", "none"});
  zero.folds = {};
  zero.folds.scale_rows("v", factors({4.0f}));
  zero.statistics = {};
  CalibrationResult sum = layer_one(), other = zero;

  sum.add(zero);
  other.add(layer_one());

  EXPECT_EQ(pack(sum), pack(other));
  EXPECT_EQ(sum.choices[0].layer, 0);
  EXPECT_EQ(sum.notes.size(), 2u) << "the same note of two ranks is one";
  EXPECT_EQ(sum.folds.find("v")->rows, std::vector<int8_t>{2});
}

TEST(CalibrationResult, OtherTextIsRefused) {
  test::expect_error(ErrorKind::kData, "part_3", [] { unpack("not it", "part_3"); });
  const std::string packed = pack(layer_one());
  test::expect_error(ErrorKind::kData, "--restart", [&] { unpack(packed.substr(0, packed.size() / 2), "part_3"); });
}

}  // namespace
}  // namespace ptq::runner
