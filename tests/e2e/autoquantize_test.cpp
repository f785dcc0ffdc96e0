// Formats chosen group by group: how good the mixes are, that ranks change nothing, what a run keeps, and what it refuses.

#include "checkpoint/stats_file.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/quality.h"
#include "tests/e2e/ways.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

struct BudgetBar {
  const char* model;
  const char* bits;
  double kl;
};
std::ostream& operator<<(std::ostream& out, const BudgetBar& bar) { return out << bar.model << " at " << bar.bits << " bits"; }

class AutoQuantizeQuality : public ::testing::TestWithParam<BudgetBar> {};

TEST_P(AutoQuantizeQuality, IsUnderItsCeiling) {
  PTQ_NEEDS_SHARED(shared);
  const BudgetBar& bar = GetParam();

  EXPECT_LE(measure_kl(shared, {bar.model, "auto", bar.kl}, 128, 60, {std::string("quantization.autoquantize.effective_bits=") + bar.bits}),
            bar.kl);
}

INSTANTIATE_TEST_SUITE_P(Budgets, AutoQuantizeQuality,
                         ::testing::Values(BudgetBar{"llama", "4.8", 0.150}, BudgetBar{"llama", "5.5", 0.107},
                                           BudgetBar{"llama", "6.5", 0.064}, BudgetBar{"qwen3", "4.8", 0.050},
                                           BudgetBar{"qwen3", "5.5", 0.031}, BudgetBar{"qwen3", "6.5", 0.0151}),
                         [](const auto& parameters) {
                           std::string name = std::string(parameters.param.model) + "_" + parameters.param.bits;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

class AutoQuantizeRanks : public Ways {
 protected:
  void expect_same_bytes_of(const std::string& model, const std::vector<Way>& ways, const std::vector<std::string>& more = {}) {
    PTQ_NEEDS_SHARED(shared);
    write_recipe(shared + "/fixtures/models/" + model, shared + "/fixtures/text/eval.jsonl", 9, 96, "auto");
    std::vector<std::string> words{"calibration.pack=false", "output.verify=false", "quantization.autoquantize.effective_bits=6",
                                   "quantization.autoquantize.kl_checks=2"};
    words.insert(words.end(), more.begin(), more.end());
    expect_same_bytes(ways, words);
    expect_success(run_program({"verify", folder_ / "one", "--source", shared + "/fixtures/models/" + model}));
  }
};

TEST_F(AutoQuantizeRanks, DoNotChangeLlama) {
  expect_same_bytes_of("llama", {{"data_2", 2, {}},
                                 {"data_3", 3, {}},
                                 {"tensor_2", 2, {"parallel.tensor=2"}},
                                 {"tensor_4", 4, {"parallel.tensor=4"}},
                                 {"pipeline_2", 2, {"parallel.pipeline=2"}},
                                 {"all_of_4", 4, {"parallel.tensor=2", "parallel.pipeline=2"}}});
}
TEST_F(AutoQuantizeRanks, DoNotChangeQwen3Moe) {
  expect_same_bytes_of("qwen3-moe",
                       {{"data_2", 2, {}},
                        {"expert_2", 2, {"parallel.expert=2"}},
                        {"expert_4", 4, {"parallel.expert=4"}},
                        {"tensor_2_expert_2", 2, {"parallel.tensor=2", "parallel.expert=2"}},
                        {"pipeline_2", 2, {"parallel.pipeline=2"}}},
                       {"quantization.kv_cache=fp8"});
}
TEST_F(AutoQuantizeRanks, DoNotChangeDeepseekV3InAnotherDialect) {
  expect_same_bytes_of("deepseek-v3", {{"expert_2", 2, {"parallel.expert=2"}}, {"tensor_2", 2, {"parallel.tensor=2"}}},
                       {"output.dialect=compressed-tensors", "quantization.autoquantize.formats=[fp8_pc_pt, int4_awq, int8_wo]",
                        "quantization.autoquantize.cost=active_moe"});
}
TEST_F(AutoQuantizeRanks, DoNotChangeLlama4) {
  expect_same_bytes_of("llama4", {{"tensor_2", 2, {"parallel.tensor=2"}}, {"data_3", 3, {}}});
}

// Too little memory for all experts and for the inputs of all layers.
TEST_F(AutoQuantizeRanks, AndStreamedExpertsDoNotChangeMixtral) {
  make_tiny_mixtral(folder_ / "model", {.hidden = 128, .intermediate = 4096, .experts = 6});
  folder_.write("data.jsonl", random_documents(6, 48, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 6, 48, "auto");
  const std::vector<std::string> words{"calibration.pack=false", "quantization.autoquantize.effective_bits=6"};
  const std::string whole = quantize("whole", 1, words);
  std::vector<std::string> scarce = words;
  scarce.emplace_back("memory.host=1MiB");
  scarce.emplace_back("output.path=" + folder_ / "scarce");
  scarce.insert(scarce.begin(), folder_ / "recipe.yaml");
  const ProgramResult refusal = run_program(scarce);
  const size_t at = refusal.err.find("this rank needs ");
  ASSERT_NE(at, std::string::npos) << refusal.report();
  scarce[scarce.size() - 2] = "memory.host=" + std::to_string(std::stoi(refusal.err.substr(at + 16)) + 24) + "MiB";
  const ProgramResult streamed = run_program(scarce);
  expect_success(streamed);
  EXPECT_NE(streamed.err.find(" at a time"), std::string::npos) << streamed.report();
  if (streamed.exit_code == 0) expect_same_output(whole, folder_ / "scarce");
}

class AutoQuantizeRun : public RecipeRuns {
 protected:
  void make_model() {
    make_tiny_llama(folder_ / "model", {.hidden = 128, .intermediate = 256});
    folder_.write("data.jsonl", random_documents(9, 32, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", 9, 32, "auto");
  }
  std::vector<std::string> words(const std::vector<std::string>& more) const {
    std::vector<std::string> all{"calibration.pack=false", "quantization.autoquantize.effective_bits=6"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

TEST_F(AutoQuantizeRun, ReportsWhatItChoseAndKeepsItsScores) {
  make_model();
  const std::string output = quantize("out", 1, words({}));

  const Json report = read_json_file(output + "/ptq-runner/report.json").at("autoquantize");
  EXPECT_LE(report.at("effective_bits").get<double>(), 6.0);
  EXPECT_EQ(report.at("mixes").size(), 3u);
  EXPECT_EQ(report.at("scored_rows"), 8) << "one row is held back";
  const size_t winner = report.at("chosen_mix");
  for (const Json& mix : report.at("mixes")) EXPECT_GE(mix.at("kl").get<double>(), report.at("mixes")[winner].at("kl").get<double>());
  const Json decisions = read_json_file(output + "/ptq-runner/manifest.json").at("decisions");
  for (const Json& group : report.at("groups")) EXPECT_GE(group.at("options").size(), 3u) << group;
  EXPECT_EQ(decisions.at("lm_head").at("format"), "none");
  EXPECT_TRUE(std::filesystem::exists(output + "/ptq-runner/scores.h5"));
  EXPECT_FALSE(std::filesystem::exists(output + "/candidates"));

  // The same scores serve another run, and other budgets.
  const std::string scores = "quantization.autoquantize.scores=" + output + "/ptq-runner/scores.h5";
  const std::string again = quantize("again", 2, words({scores}));
  expect_same_output(output, again);
  EXPECT_NE(last_.err.find("scores of "), std::string::npos) << last_.report();
  quantize("more", 1, words({scores, "quantization.autoquantize.effective_bits=9"}));
  const ProgramResult solved = run_program({"solve", output + "/ptq-runner/scores.h5", "--effective-bits", "6,9", "--json"});
  expect_success(solved);
}

TEST_F(AutoQuantizeRun, RefusesScoresOfSomethingElse) {
  make_model();
  const std::string output = quantize("out", 1, words({}));
  const std::string scores = "quantization.autoquantize.scores=" + output + "/ptq-runner/scores.h5";
  const auto expect_refused = [&](const std::vector<std::string>& more, const std::string& part) {
    std::vector<std::string> all{folder_ / "recipe.yaml", "output.path=" + folder_ / "other"};
    for (const std::string& word : words(more)) all.push_back(word);
    all.push_back(scores);
    const ProgramResult result = run_program(all);
    EXPECT_EQ(result.exit_code, 2) << result.report();
    EXPECT_NE(result.err.find(part), std::string::npos) << result.report();
    EXPECT_FALSE(std::filesystem::exists(folder_ / "other.work"));
  };
  expect_refused({"quantization.autoquantize.formats=[nvfp4_awq, int8_wo]"}, "candidate");
  expect_refused({"calibration.samples=8"}, "data");
  expect_refused({"quantization.autoquantize.cost=active_moe"}, "cost");
  edit_tensors(folder_ / "model/model.safetensors", [](StoredTensors& tensors) { set_bf16(tensors.at("model.norm.weight"), 0, 0.5f); });
  expect_refused({}, "model");
}

TEST_F(AutoQuantizeRun, VerificationFindsTensorsThatDidNotTakeTheirFactors) {
  make_model();
  edit_tensors(folder_ / "model/model.safetensors", [](StoredTensors& tensors) {
    for (auto& [name, tensor] : tensors)
      for (int64_t c = 0; name.ends_with("layernorm.weight") && c < tensor.shape[0]; c += 7) set_bf16(tensor, c, 8.0f);
  });
  // So many bits that most linears stay as they are.
  const std::string output = quantize("out", 1, words({"quantization.autoquantize.effective_bits=15"}));
  const std::string norm = "model.layers.0.input_layernorm.weight";
  const StoredTensors sound = read_tensors(output), source = read_tensors(folder_ / "model");
  ASSERT_FALSE(sound.at(norm) == source.at(norm)) << "factors were folded";
  std::string plain;
  for (const char* module : {"q_proj", "k_proj", "v_proj"})
    if (const std::string name = std::string("model.layers.0.self_attn.") + module + ".weight";
        sound.count(name) && sound.at(name).dtype == "BF16")
      plain = name;
  ASSERT_FALSE(plain.empty()) << "attention of layer 0 is quantized";
  const auto expect_found = [&](const std::function<void(StoredTensors&)>& damage) {
    edit_tensors(output + "/model.safetensors", damage);
    const ProgramResult result = run_program({"verify", output, "--source", folder_ / "model"});
    EXPECT_EQ(result.exit_code, 1) << result.report();
    EXPECT_NE(result.out.find("powers of two"), std::string::npos) << result.report();
    edit_tensors(output + "/model.safetensors", [&](StoredTensors& tensors) { tensors = sound; });
  };
  expect_success(run_program({"verify", output, "--source", folder_ / "model"}));
  expect_found([&](StoredTensors& tensors) { tensors.at(plain) = source.at(plain); });
  expect_found([&](StoredTensors& tensors) { tensors.at(norm) = source.at(norm); });
  expect_found([&](StoredTensors& tensors) { set_bf16(tensors.at(norm), 3, 3.0f * static_cast<float>(tensors.at(norm).values()[3])); });
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"BudgetBelowReach",
       2,
       {"cannot be reached: the candidates give 4.5", "effective_bits"},
       [](Scene& scene) { scene.add("quantization.autoquantize.effective_bits=3"); }},
      {"BudgetAboveReach",
       2,
       {"cannot be reached: the candidates give 4.5", "effective_bits"},
       [](Scene& scene) { scene.add("quantization.autoquantize.effective_bits=17"); }},
      {"CandidateThatTheEngineLacks",
       2,
       {"loads the candidate mxfp8: sglang", "quantization.autoquantize.formats"},
       [](Scene& scene) {
         scene.add("quantization.autoquantize.formats=[fp8, mxfp8]");
         scene.add("output.engine=sglang");
       }},
      {"RowsOfOneToken",
       2,
       {"every gradient is zero", "calibration.data"},
       [](Scene& scene) {
         write_file(scene.data, random_documents(4, 1, 128));
         scene.add("calibration.sequence_length=1");
       }},
      {"ExpertsOfDifferentFormats",
       2,
       {"expert_granularity"},
       [](Scene& scene) { scene.add("quantization.autoquantize.expert_granularity=expert"); }},
      {"ScoresThatAreNotThere", 2, {"scores.h5"}, [](Scene& scene) { scene.add("quantization.autoquantize.scores=scores.h5"); }},
      {"DamagedScores",
       3,
       {"scores.h5"},
       [](Scene& scene) {
         write_file(scene.folder / "scores.h5", "no scores");
         scene.add("quantization.autoquantize.scores=" + (scene.folder / "scores.h5"));
       }},
  };
  return all;
}

class BadAutoQuantize : public ::testing::TestWithParam<CaseAtRanks> {};

TEST_P(BadAutoQuantize, EndsWithOneClearMessage) {
  Scene scene([](const std::string& model) { make_tiny_llama(model, {.hidden = 128, .intermediate = 256}); });
  scene.recipe = recipe_text(scene.model, scene.data, scene.output, 4, 32, "auto");
  scene.add("quantization.autoquantize.effective_bits=9");
  GetParam().input.spoil(scene);
  const ProgramResult result = run_program(scene.command(), {.ranks = GetParam().ranks});
  EXPECT_EQ(result.exit_code, GetParam().input.code) << result.report();
  for (const std::string& word : GetParam().input.words)
    EXPECT_NE(result.err.find(word), std::string::npos) << word << "\n" << result.report();
  EXPECT_EQ(result.errors().size(), 1u) << result.report();
  EXPECT_FALSE(std::filesystem::exists(scene.output));
  EXPECT_FALSE(std::filesystem::exists(scene.output + ".work"));
}

INSTANTIATE_TEST_SUITE_P(Cases, BadAutoQuantize, ::testing::ValuesIn(at_ranks(cases())), [](const auto& parameters) {
  return std::string(parameters.param.input.name) + "AtRanks" + std::to_string(parameters.param.ranks);
});

}  // namespace
}  // namespace ptq::test
