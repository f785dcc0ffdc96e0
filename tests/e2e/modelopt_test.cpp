// The export beside the one NVIDIA ModelOpt made of the same model and text: names, dtypes, shapes, metadata, scales and codes.

#include <bit>
#include <cmath>
#include <cstdint>

#include "tests/e2e/fixtures.h"

namespace ptq::test {
namespace {

bool ends_with(const std::string& text, const std::string& end) { return text.size() >= end.size() && text.ends_with(end); }

int64_t distance_in_ulps(float a, float b) {
  return std::abs(static_cast<int64_t>(std::bit_cast<int32_t>(a)) - static_cast<int64_t>(std::bit_cast<int32_t>(b)));
}

/// Our own words, which ModelOpt's files do not have.
Json without_our_words(Json config) {
  if (config.contains("producer")) config["producer"].erase("generator");
  config.erase("group_size");
  return config;
}

/// The linears that a server fuses with `module`: they share weight_scale_2.
std::vector<std::string> fused_with(const std::string& module) {
  const std::string prefix = module.substr(0, module.rfind('.') + 1), name = module.substr(prefix.size());
  if (name == "q_proj" || name == "k_proj" || name == "v_proj") return {prefix + "q_proj", prefix + "k_proj", prefix + "v_proj"};
  if (name == "gate_proj" || name == "up_proj") return {prefix + "gate_proj", prefix + "up_proj"};
  return {module};
}

class ModelOpt : public ::testing::Test {
 protected:
  void SetUp() override { make("llama-NVFP4_DEFAULT_CFG", "nvfp4"); }
  /// Theirs of that name unpacked, and ours by that preset from what it was made of.
  void make(const std::string& export_name, const std::string& preset) {
    PTQ_NEEDS_SHARED(shared);
    const std::string archive = shared + "/fixtures/modelopt_exports/" + export_name + ".tar.xz";
    if (!std::filesystem::exists(archive)) GTEST_SKIP() << "no test material: " << archive << " is absent";
    const ProgramResult untarred = run_command({"tar", "-xJf", archive, "-C", folder_.path()});
    if (untarred.exit_code != 0) GTEST_SKIP() << "tar and xz cannot unpack the export of ModelOpt: " << untarred.err;
    theirs_folder_ = folder_ / export_name;
    ours_folder_ = folder_ / "ours";
    model_ = shared + "/fixtures/models/llama";
    const std::string recipe =
        folder_.write("recipe.yaml", recipe_text(model_, shared + "/fixtures/text/calib.jsonl", ours_folder_, 128, 512, preset));
    const ProgramResult quantized = run_program({recipe, "calibration.pack=false", "calibration.drop_short=true"});
    ASSERT_EQ(quantized.exit_code, 0) << quantized.report();
    theirs_ = read_tensors(theirs_folder_);
    ours_ = read_tensors(ours_folder_);
  }

  TemporaryFolder folder_;
  std::string model_, theirs_folder_, ours_folder_;
  StoredTensors theirs_, ours_;
};

class ModelOptInt4 : public ModelOpt {
 protected:
  void SetUp() override { make("llama-INT4_AWQ_CFG", "int4_awq"); }
};

void expect_same_tensors(const StoredTensors& theirs_tensors, const StoredTensors& ours_tensors) {
  std::vector<std::string> theirs, ours;
  for (const auto& [name, tensor] : theirs_tensors) theirs.push_back(name);
  for (const auto& [name, tensor] : ours_tensors) ours.push_back(name);
  ASSERT_EQ(ours, theirs);
  for (const auto& [name, tensor] : theirs_tensors) {
    EXPECT_EQ(ours_tensors.at(name).dtype, tensor.dtype) << name;
    EXPECT_EQ(ours_tensors.at(name).shape, tensor.shape) << name;
  }
}

void expect_same_metadata(const std::string& theirs_folder, const std::string& ours_folder) {
  const Json theirs = read_json_file(theirs_folder + "/config.json"), ours = read_json_file(ours_folder + "/config.json");
  EXPECT_EQ(without_our_words(ours.at("quantization_config")), theirs.at("quantization_config"));
  EXPECT_EQ(without_our_words(read_json_file(ours_folder + "/hf_quant_config.json")),
            read_json_file(theirs_folder + "/hf_quant_config.json"));
}

TEST_F(ModelOpt, HasTheSameTensorsAsOurs) { expect_same_tensors(theirs_, ours_); }
TEST_F(ModelOpt, HasTheSameMetadataAsOurs) { expect_same_metadata(theirs_folder_, ours_folder_); }
TEST_F(ModelOptInt4, HasTheSameTensorsAsOurs) { expect_same_tensors(theirs_, ours_); }
TEST_F(ModelOptInt4, HasTheSameMetadataAsOurs) { expect_same_metadata(theirs_folder_, ours_folder_); }

TEST_F(ModelOpt, HasTheSameWeightScalesAndCodesAsOurs) {
  const StoredTensors source = read_tensors(model_ + "/model.safetensors");
  const float step = 1.0f / 2688.0f;
  int scales = 0, rounded_elsewhere = 0;
  for (const auto& [name, tensor] : theirs_) {
    if (!ends_with(name, ".weight_scale_2")) continue;
    const std::string module = name.substr(0, name.size() - std::string(".weight_scale_2").size());
    ++scales;
    double amax = 0;
    for (const auto& fused : fused_with(module))
      for (const double value : source.at(fused + ".weight").values()) amax = std::max(amax, std::fabs(value));

    // ModelOpt multiplies by the rounded reciprocal of 6 · 448, we divide: at most one unit in the last place apart.
    EXPECT_EQ(tensor.scalar(), static_cast<float>(amax) * step) << name;
    EXPECT_EQ(ours_.at(name).scalar(), static_cast<float>(amax) / 2688.0f) << name;
    EXPECT_LE(distance_in_ulps(ours_.at(name).scalar(), tensor.scalar()), 1) << name;
    EXPECT_TRUE(ours_.at(module + ".weight_scale") == theirs_.at(module + ".weight_scale")) << module << ".weight_scale";
    if (ours_.at(name) == tensor) {
      EXPECT_TRUE(ours_.at(module + ".weight") == theirs_.at(module + ".weight")) << module << ".weight";
    } else {
      ++rounded_elsewhere;
    }
  }
  EXPECT_EQ(scales, 42);
  std::cout << rounded_elsewhere << " of " << scales << " weight_scale_2 differ in the last place\n";
}

TEST_F(ModelOpt, SawActivationsLikeOurs) {
  // It calibrated with inverse rope frequencies rounded to bf16, which moves its statistics by up to 4.5 %.
  double farthest = 0;
  for (const auto& [name, tensor] : theirs_) {
    if (!ends_with(name, ".input_scale")) continue;
    const double ratio = ours_.at(name).scalar() / tensor.scalar();
    EXPECT_NEAR(ratio, 1.0, 0.05) << name;
    farthest = std::max(farthest, std::fabs(ratio - 1));
  }
  std::cout << "input_scale differs by at most " << 100 * farthest << " %\n";
}

TEST_F(ModelOpt, CopiesTheSameBytesAsOurs) {
  for (const auto& [name, tensor] : theirs_) {
    if (tensor.dtype == "BF16") {
      EXPECT_TRUE(ours_.at(name) == tensor) << name;
    }
  }
}

}  // namespace
}  // namespace ptq::test
