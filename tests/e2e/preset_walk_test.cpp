// Every preset on every kind of model in every dialect: it is refused at once with a reason, or it runs, verifies itself and is found sound
// beside its source.

#include <algorithm>

#include "tests/e2e/fixtures.h"

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

  const std::string model_ = std::get<0>(GetParam()), dialect_ = std::get<1>(GetParam());
  TemporaryFolder folder_;
  std::string output_ = folder_ / "out";
};

TEST_P(PresetWalk, RunsOrIsRefusedWithAReason) {
  PTQ_NEEDS_SHARED(shared);
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
    if (result.exit_code == 0) expect_success(run_program({"verify", output_, "--source", shared + "/fixtures/models/" + model_}));
  }
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
