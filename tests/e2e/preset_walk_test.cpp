// Every preset on every kind of model in every dialect: it is refused at once with a reason, or it runs, verifies itself and is found sound
// beside its source.

#include <algorithm>

#include "tests/e2e/fixtures.h"
#include "tests/e2e/stored_weights.h"

namespace ptq::test {
namespace {

const std::vector<std::string> kPresets{"none",    "fp8",     "fp8_pb_wo", "fp8_pc_pt", "nvfp4", "nvfp4_awq", "w4a16_nvfp4",
                                        "int8_sq", "int8_wo", "int4_awq",  "w4a8_awq",  "mxfp8", "mxfp4"};

/// Words of the one reason why this must be refused; "" where it must run.
std::string refusal(const std::string& model, const std::string& preset, const std::string& dialect) {
  if (preset == "none") return "";
  if (dialect == "deepseek-fp8" && preset != "fp8_pb_wo") return "holds fp8_pb_wo alone";
  if (model == "llama4" && (dialect != "modelopt" || preset == "fp8_pb_wo")) return "holds all experts in one tensor";
  if (dialect == "modelopt" && (preset == "int8_sq" || preset == "mxfp4")) return "no engine asked for loads such a checkpoint";
  return "";
}

class PresetWalk : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  ProgramResult quantize(const std::string& shared, const std::string& preset) {
    const std::string source = shared + "/fixtures/models/" + model_, text = shared + "/fixtures/text/eval.jsonl";
    return run_program({folder_.write("recipe.yaml", recipe_text(source, text, output_, 4, 64, preset)), "calibration.pack=false",
                        "output.dialect=" + dialect_, "--threads", "1"});
  }

  /// What the files hold is the source's weights: by the error that each format may have, and, of what nothing smoothed, with the scales
  /// that follow from the source.
  void expect_weights_of(const StoredTensors& source, const StoredTensors& stored, const std::string& preset) {
    static const std::set<std::string> searched{"nvfp4_awq", "w4a16_nvfp4", "int8_sq", "int4_awq", "w4a8_awq"};
    static const std::map<std::string, double> rounded{{"fp8", 0.04},  {"fp8 rows", 0.04}, {"fp8 blocks", 0.04}, {"int8", 0.02},
                                                       {"int4", 0.15}, {"nvfp4", 0.13},    {"mxfp8", 0.04},      {"mxfp4", 0.2}};
    // Smoothing stretches rows, and error feedback gives up nearness of weights for nearness of outputs. A
    // module in the source's own blocks is a copy.
    static const std::map<std::string, double> solved{{"int8", 0.05}, {"int4", 0.3}, {"nvfp4", 0.25}, {"fp8 blocks", 1e-9}};
    const bool fitted = searched.count(preset) > 0;
    int64_t seen = 0;
    for (const auto& [name, original] : source) {
      if (!name.ends_with(".weight")) continue;
      const std::string module = name.substr(0, name.size() - 7);
      const auto weight = stored_weight(stored, module), published = stored_weight(source, module);
      if (!weight) continue;
      ++seen;
      const std::vector<double> exact = published ? published->values : original.values();
      ASSERT_EQ(weight->values.size(), exact.size()) << module;
      const double error = relative_error(*weight, exact, fitted);
      worst_[preset + " " + weight->format] = std::max(worst_[preset + " " + weight->format], error);
      const auto& bounds = fitted ? solved : rounded;
      ASSERT_TRUE(bounds.count(weight->format)) << module << " as " << weight->format;
      EXPECT_LT(error, bounds.at(weight->format)) << module << " as " << weight->format;
      if (!fitted && !published) expect_scales_of(exact, stored, module, *weight);
    }
    if (preset != "none") {
      EXPECT_GT(seen, 0);
    }
  }
  void expect_scales_of(const std::vector<double>& exact, const StoredTensors& stored, const std::string& module,
                        const StoredWeight& weight) {
    const auto amax = [&](int64_t begin, int64_t count) {
      double most = 0;
      for (int64_t i = begin; i < begin + count; ++i) most = std::max(most, std::abs(exact[static_cast<size_t>(i)]));
      return static_cast<float>(most);
    };
    if (weight.format == "fp8" && module.find(".experts.") == std::string::npos) {  // whose gate and up share one
      EXPECT_NEAR(stored.at(module + ".weight_scale").values()[0] * 448 / amax(0, weight.rows * weight.columns), 1, 1e-6) << module;
    }
    if (weight.format != "nvfp4" || !stored.count(module + ".weight_scale_2")) return;
    const float second = stored.at(module + ".weight_scale_2").scalar();
    const StoredTensor& scales = stored.at(module + ".weight_scale");
    for (int64_t block = 0; block < weight.rows * weight.columns / 16; ++block) {
      const float range = amax(block * 16, 16);
      const float ratio = range == 0 ? 1.0f : std::clamp(range / (6.0f * second), 0x1p-9f, 448.0f);
      ASSERT_EQ(static_cast<uint8_t>(scales.bytes[static_cast<size_t>(block)]), nearest_e4m3(ratio)) << module << ", block " << block;
    }
  }

  std::map<std::string, double> worst_;  ///< relative error, by preset and format
  const std::string model_ = std::get<0>(GetParam()), dialect_ = std::get<1>(GetParam());
  TemporaryFolder folder_;
  std::string output_ = folder_ / "out";
};

TEST_P(PresetWalk, RunsOrIsRefusedWithAReason) {
  PTQ_NEEDS_SHARED(shared);
  const StoredTensors source = read_tensors(shared + "/fixtures/models/" + model_);
  for (const std::string& preset : kPresets) {
    SCOPED_TRACE(preset);
    std::filesystem::remove_all(output_);
    const ProgramResult result = quantize(shared, preset);
    const std::string reason = refusal(model_, preset, dialect_);
    if (!reason.empty()) {
      EXPECT_EQ(result.exit_code, 2) << result.report();
      EXPECT_NE(result.err.find(reason), std::string::npos) << result.report();
      EXPECT_NE(result.err.find("fix "), std::string::npos) << result.report();
      EXPECT_FALSE(std::filesystem::exists(output_));
      continue;
    }
    expect_success(result);
    if (result.exit_code != 0) continue;
    expect_success(run_program({"verify", output_, "--source", shared + "/fixtures/models/" + model_}));
    expect_weights_of(source, read_tensors(output_), preset);
  }
  for (const auto& [what, error] : worst_) std::cout << what << ": relative error up to " << error << "\n";
}

INSTANTIATE_TEST_SUITE_P(Models, PresetWalk,
                         ::testing::Combine(::testing::Values("llama", "qwen3", "qwen3-moe", "deepseek-v3", "nemotron-nas", "mixtral",
                                                              "llama4"),
                                            ::testing::Values("modelopt", "compressed-tensors", "deepseek-fp8")),
                         [](const auto& parameters) {
                           std::string name = std::string(std::get<0>(parameters.param)) + "_" + std::get<1>(parameters.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace ptq::test
