// `verify` and `evaluate` on exports of mixtures: what is sound passes, what a server would stumble over is found and named, and rank
// counts do not matter.

#include <cstring>
#include <filesystem>

#include "tests/e2e/fixtures.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

struct Damage {
  const char* name;
  void (*inflict)(const std::string& folder);
  std::string words;         ///< that a finding must hold
  bool with_source = false;  ///< only seen beside the source, or by the manifest's sums
};

void edit(const std::string& folder, const std::function<void(StoredTensors&)>& change) {
  edit_tensors(folder + "/model.safetensors", change);
}

void set_scalar(const std::string& folder, const std::string& name, float value) {
  edit(folder, [&](StoredTensors& tensors) { std::memcpy(tensors.at(name).bytes.data(), &value, 4); });
}

void drop_pattern(const std::string& folder, const std::string& pattern) {
  const auto drop = [&](Json& patterns) {
    const auto found = std::find(patterns.begin(), patterns.end(), pattern);
    ASSERT_TRUE(found != patterns.end()) << pattern;
    patterns.erase(found);
  };
  edit_json_file(folder + "/config.json", [&](Json& config) { drop(config["quantization_config"]["ignore"]); });
  edit_json_file(folder + "/hf_quant_config.json", [&](Json& config) { drop(config["quantization"]["exclude_modules"]); });
}

const std::string kExpert = "model.layers.1.mlp.experts.2.";

class MoeVerify : public ::testing::Test {
 protected:
  /// A sound export at folder_ / "out" of the model at folder_ / "model".
  void make_export(const std::vector<std::string>& words = {}) {
    folder_.write("data.jsonl", random_documents(4, 32, 128));
    folder_.write("recipe.yaml", recipe_text(folder_ / "model", folder_ / "data.jsonl", output_, 4, 32));
    std::vector<std::string> arguments{folder_ / "recipe.yaml", "calibration.pack=false", "quantization.kv_cache=fp8"};
    arguments.insert(arguments.end(), words.begin(), words.end());
    expect_success(run_program(arguments));
  }
  /// Each damage by itself, without the manifest, whose sums would tell of any.
  void expect_found(const std::vector<Damage>& damages) {
    std::vector<ProgramCall> calls;
    for (const Damage& damage : damages) {
      const std::string folder = folder_ / damage.name;
      copy_folder(output_, folder);
      fs::remove_all(folder + "/ptq-runner");
      damage.inflict(folder);
      for (const int ranks : {1, 2}) {
        calls.push_back({{"verify", folder}, {.ranks = ranks}});
        if (damage.with_source) calls.back().arguments.insert(calls.back().arguments.end(), {"--source", folder_ / "model"});
      }
    }
    const std::vector<ProgramResult> results = run_programs(calls, 8);
    for (size_t i = 0; i < calls.size(); ++i) {
      const Damage& damage = damages[i / 2];
      const ProgramResult& result = results[i];
      SCOPED_TRACE(std::string(damage.name) + ", ranks: " + std::to_string(calls[i].options.ranks));
      EXPECT_EQ(result.exit_code, 1) << result.report();
      EXPECT_NE(result.out.find(damage.words), std::string::npos) << damage.words << "\n" << result.report();
      EXPECT_EQ(result.errors().size(), 1u) << result.report();
    }
  }

  TemporaryFolder folder_;
  std::string output_ = folder_ / "out";
};

TEST_F(MoeVerify, FindsWhatIsWrongWithExpertsOneByOne) {
  make_tiny_deepseek(folder_ / "model", {.mtp_layers = 1});
  make_export();
  expect_found({
      {"InputScaleOfOneExpert", [](const std::string& f) { set_scalar(f, kExpert + "up_proj.input_scale", 0.25f); }, "share input_scale"},
      {"InputScalesSwapped",
       [](const std::string& f) {
         edit(f, [](StoredTensors& t) { std::swap(t.at(kExpert + "up_proj.input_scale"), t.at(kExpert + "down_proj.input_scale")); });
       },
       "share input_scale"},
      {"ScaleOfGateAlone", [](const std::string& f) { set_scalar(f, kExpert + "gate_proj.weight_scale_2", 0.5f); }, "share weight_scale_2"},
      {"NoWeightOfAnExpert", [](const std::string& f) { edit(f, [](StoredTensors& t) { t.erase(kExpert + "up_proj.weight"); }); },
       kExpert + "up_proj"},
      {"NoScaleOfAnExpert", [](const std::string& f) { edit(f, [](StoredTensors& t) { t.erase(kExpert + "down_proj.weight_scale"); }); },
       kExpert + "down_proj"},
      {"NoInputScaleOfAnExpert",
       [](const std::string& f) { edit(f, [](StoredTensors& t) { t.erase(kExpert + "down_proj.input_scale"); }); }, kExpert + "down_proj"},
      {"NanBlockScale",
       [](const std::string& f) { edit(f, [](StoredTensors& t) { t.at(kExpert + "up_proj.weight_scale").bytes[3] = '\x7f'; }); },
       kExpert + "up_proj.weight_scale"},
      {"RouterNotExcluded", [](const std::string& f) { drop_pattern(f, "model.layers.1.mlp.gate"); }, "model.layers.1.mlp.gate"},
      {"PredictionLayerNotExcluded", [](const std::string& f) { drop_pattern(f, "model.layers.2*"); }, "model.layers.2."},
      {"RouterChanged",
       [](const std::string& f) { edit(f, [](StoredTensors& t) { t.at("model.layers.1.mlp.gate.weight").bytes[0] ^= 1; }); },
       "model.layers.1.mlp.gate.weight differs", true},
      {"CorrectionChanged",
       [](const std::string& f) {
         edit(f, [](StoredTensors& t) { t.at("model.layers.1.mlp.gate.e_score_correction_bias").bytes[5] ^= 1; });
       },
       "e_score_correction_bias differs", true},
      {"PredictionLayerMissing", [](const std::string& f) { edit(f, [](StoredTensors& t) { t.erase("model.layers.2.eh_proj.weight"); }); },
       "model.layers.2.eh_proj.weight is in the source but not here", true},
  });
}

TEST_F(MoeVerify, FindsWhatIsWrongWithStackedExperts) {
  make_tiny_gpt_oss(folder_ / "model");
  make_export();
  expect_found({
      {"NanBlockScale",
       [](const std::string& f) {
         edit(f, [](StoredTensors& t) { t.at("model.layers.1.mlp.experts.down_proj_weight_scale").bytes[100] = '\x7f'; });
       },
       "model.layers.1.mlp.experts.down_proj_weight_scale"},
      {"ZeroInputScale", [](const std::string& f) { set_scalar(f, "model.layers.0.mlp.experts.gate_up_proj_input_scale", 0); },
       "gate_up_proj_input_scale"},
      {"NoScale",
       [](const std::string& f) { edit(f, [](StoredTensors& t) { t.erase("model.layers.0.mlp.experts.gate_up_proj_weight_scale_2"); }); },
       "gate_up_proj"},
      {"BiasChanged",
       [](const std::string& f) { edit(f, [](StoredTensors& t) { t.at("model.layers.0.mlp.experts.down_proj_bias").bytes[9] ^= 1; }); },
       "down_proj_bias differs", true},
  });
}

TEST_F(MoeVerify, FindsAChangedByteOfAnExpertByTheManifest) {
  make_tiny_mixtral(folder_ / "model");
  make_export();
  edit(output_, [](StoredTensors& t) { t.at("model.layers.1.block_sparse_moe.experts.3.w1.weight").bytes[10] ^= 1; });
  for (const int ranks : {1, 2}) {
    const ProgramResult result = run_program({"verify", output_}, {.ranks = ranks});
    EXPECT_EQ(result.exit_code, 1) << result.report();
    EXPECT_NE(result.out.find("model.safetensors is not the file"), std::string::npos) << result.report();
  }
}

TEST_F(MoeVerify, ExportsAreEvaluatedAlikeByAllRankCounts) {
  struct Model {
    const char* name;
    void (*make)(const std::string&, const TinyMoe&);
  };
  for (const Model& model : {Model{"deepseek", make_tiny_deepseek}, {"llama4", make_tiny_llama4}, {"gpt_oss", make_tiny_gpt_oss}}) {
    SCOPED_TRACE(model.name);
    fs::remove_all(folder_ / "model");
    model.make(folder_ / "model", {});
    if (model.make == make_tiny_gpt_oss) store_in_mxfp4(folder_ / "model");
    make_export({"output.overwrite=true"});
    const std::vector<std::string> arguments{"--model", output_, "--reference", folder_ / "model", "--text", folder_ / "data.jsonl"};

    const Json one = evaluate(arguments), two = evaluate(arguments, {.ranks = 2}), three = evaluate(arguments, {.ranks = 3});

    EXPECT_EQ(one, two);
    EXPECT_EQ(one, three);
    EXPECT_GT(one.at("kl").get<double>(), 0.0);
    EXPECT_LT(one.at("kl").get<double>(), 1.0);
  }
}

TEST_F(MoeVerify, FixtureExportsAreEvaluatedAlikeByAllRankCounts) {
  PTQ_NEEDS_SHARED(shared);
  const std::string model = shared + "/fixtures/models/deepseek-v3", text = shared + "/fixtures/text/eval.jsonl";
  folder_.write("recipe.yaml", recipe_text(model, text, output_, 4, 64));
  expect_success(run_program({folder_ / "recipe.yaml"}));
  const std::vector<std::string> arguments{"--model",   output_, "--reference",       model, "--text", text,
                                           "--samples", "3",     "--sequence-length", "64"};

  EXPECT_EQ(evaluate(arguments), evaluate(arguments, {.ranks = 2}));
}

TEST_F(MoeVerify, InspectSaysHowManyExpertsThereAre) {
  make_tiny_deepseek(folder_ / "model");
  store_in_fp8_blocks(folder_ / "model");
  const ProgramResult before = run_program({"inspect", folder_ / "model", "--json"});
  expect_success(before);
  make_export();
  const ProgramResult after = run_program({"inspect", output_, "--json"});
  expect_success(after);

  const Json source = Json::parse(before.out), exported = Json::parse(after.out);
  EXPECT_EQ(source.at("family"), "deepseek_v3");
  EXPECT_EQ(source.at("experts"), 4);
  EXPECT_EQ(source.at("moe_layers"), 1);
  EXPECT_EQ(source.at("parameters"), exported.at("parameters"));
  EXPECT_NE(source.at("quantization").get<std::string>().find("native"), std::string::npos);
  EXPECT_EQ(exported.at("quantization"), "NVFP4");
  EXPECT_EQ(exported.at("linears_by_format").at("nvfp4"), 2 * 5 + 3 + (4 + 1) * 3);
}

}  // namespace
}  // namespace ptq::test
