// `verify` on sound and on damaged exports: it finds what a server would stumble over, and says where.

#include <cmath>
#include <cstring>
#include <filesystem>

#include "tests/e2e/fixtures.h"

namespace ptq::test {
namespace {

struct Damage {
  const char* name;
  const char* preset;
  void (*inflict)(const std::string& folder);
  std::string words;         ///< that the finding must hold
  bool with_source = false;  ///< only seen beside the source
};

std::ostream& operator<<(std::ostream& out, const Damage& damage) { return out << damage.name; }

void set_scalar(const std::string& folder, const std::string& name, float value) {
  edit_tensors(folder + "/model.safetensors", [&](StoredTensors& tensors) { std::memcpy(tensors.at(name).bytes.data(), &value, 4); });
}
void set_byte(const std::string& folder, const std::string& name, size_t at, char value) {
  edit_tensors(folder + "/model.safetensors", [&](StoredTensors& tensors) { tensors.at(name).bytes.at(at) = value; });
}

const char* const kUp = "model.layers.1.mlp.up_proj";

const std::vector<Damage>& damages() {
  static const std::vector<Damage> all{
      {"NanScale", "nvfp4", [](const std::string& folder) { set_scalar(folder, std::string(kUp) + ".weight_scale_2", NAN); },
       "up_proj.weight_scale_2"},
      {"ZeroScale", "nvfp4", [](const std::string& folder) { set_scalar(folder, std::string(kUp) + ".weight_scale_2", 0); },
       "up_proj.weight_scale_2"},
      {"NegativeInputScale", "fp8", [](const std::string& folder) { set_scalar(folder, std::string(kUp) + ".input_scale", -1); },
       "up_proj.input_scale"},
      {"UnequalFusedScale", "nvfp4", [](const std::string& folder) { set_scalar(folder, std::string(kUp) + ".weight_scale_2", 1); },
       "share weight_scale_2"},
      {"NanCode", "fp8", [](const std::string& folder) { set_byte(folder, std::string(kUp) + ".weight", 77, 0x7f); }, "up_proj.weight"},
      {"NegativeNanCode", "fp8", [](const std::string& folder) { set_byte(folder, std::string(kUp) + ".weight", 0, '\xff'); },
       "up_proj.weight"},
      {"NanBlockScale", "nvfp4", [](const std::string& folder) { set_byte(folder, std::string(kUp) + ".weight_scale", 5, 0x7f); },
       "up_proj.weight_scale"},
      {"ZeroBlockScale", "nvfp4", [](const std::string& folder) { set_byte(folder, std::string(kUp) + ".weight_scale", 5, 0); },
       "up_proj.weight_scale"},
      {"NoQuantConfig", "nvfp4", [](const std::string& folder) { std::filesystem::remove(folder + "/hf_quant_config.json"); },
       "hf_quant_config.json"},
      {"NoConfigWords", "nvfp4",
       [](const std::string& folder) {
         edit_json_file(folder + "/config.json", [](Json& config) { config.erase("quantization_config"); });
       },
       "config.json"},
      {"OtherAlgorithm", "nvfp4",
       [](const std::string& folder) {
         edit_json_file(folder + "/hf_quant_config.json", [](Json& config) { config["quantization"]["quant_algo"] = "FP8"; });
       },
       "quant_algo"},
      {"NoScale", "nvfp4",
       [](const std::string& folder) {
         edit_tensors(folder + "/model.safetensors", [](StoredTensors& tensors) { tensors.erase(std::string(kUp) + ".weight_scale_2"); });
       },
       "up_proj"},
      {"NoKeyScale", "nvfp4",
       [](const std::string& folder) {
         edit_tensors(folder + "/model.safetensors",
                      [](StoredTensors& tensors) { tensors.erase("model.layers.1.self_attn.k_proj.k_scale"); });
       },
       "k_proj.k_scale"},
      {"TruncatedWeights", "nvfp4",
       [](const std::string& folder) {
         const std::string path = folder + "/model.safetensors";
         std::filesystem::resize_file(path, std::filesystem::file_size(path) - 100);
       },
       "safetensors"},
      {"ChangedNorm", "nvfp4", [](const std::string& folder) { set_byte(folder, "model.norm.weight", 0, 1); }, "model.norm.weight", true},
  };
  return all;
}

class Verify : public ::testing::TestWithParam<Damage> {
 protected:
  /// A small sound export, at folder_ / "out", of the model at folder_ / "model".
  void make_export(const std::string& preset) {
    make_tiny_llama(folder_ / "model");
    folder_.write("data.jsonl", random_documents(4, 32, 128));
    folder_.write("recipe.yaml", recipe_text(folder_ / "model", folder_ / "data.jsonl", output_, 4, 32, preset));
    expect_success(run_program({folder_ / "recipe.yaml", "calibration.pack=false", "quantization.kv_cache=fp8"}));
  }

  TemporaryFolder folder_;
  std::string output_ = folder_ / "out";
};

class VerifySums : public Verify {};

TEST_P(Verify, FindsTheDamage) {
  const Damage& damage = GetParam();
  make_export(damage.preset);
  damage.inflict(output_);

  for (const int ranks : {1, 2}) {
    std::vector<std::string> words{"verify", output_};
    if (damage.with_source) words.insert(words.end(), {"--source", folder_ / "model"});
    const ProgramResult result = run_program(words, {.ranks = ranks});
    EXPECT_EQ(result.exit_code, 1) << result.report();
    EXPECT_NE(result.out.find(damage.words), std::string::npos) << damage.words << "\n" << result.report();
    EXPECT_EQ(result.errors().size(), 1u) << result.report();
  }
}

TEST_F(VerifySums, AFileThatIsNotWhatTheManifestSaysIsFoundWithoutTheSource) {
  make_export("nvfp4");
  set_byte(output_, "model.norm.weight", 0, 1);

  const ProgramResult result = run_program({"verify", output_});

  EXPECT_EQ(result.exit_code, 1) << result.report();
  EXPECT_NE(result.out.find("model.safetensors is not the file whose SHA-256 the manifest keeps"), std::string::npos) << result.report();
}

INSTANTIATE_TEST_SUITE_P(Damages, Verify, ::testing::ValuesIn(damages()),
                         [](const auto& damage) { return std::string(damage.param.name); });

class VerifySound : public Verify {};

TEST_P(VerifySound, ExportPasses) {
  make_export(GetParam().preset);
  for (const int ranks : {1, 3}) {
    const ProgramResult result = run_program({"verify", output_, "--source", folder_ / "model", "--json"}, {.ranks = ranks});
    expect_success(result);
    const Json json = Json::parse(result.out, nullptr, false);
    EXPECT_GT(json.at("checks").get<int>(), 50);
    EXPECT_EQ(json.at("failures"), Json::array());
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, VerifySound, ::testing::Values(Damage{"nvfp4", "nvfp4", nullptr, ""}, Damage{"fp8", "fp8", nullptr, ""}),
                         [](const auto& damage) { return std::string(damage.param.name); });

}  // namespace
}  // namespace ptq::test
