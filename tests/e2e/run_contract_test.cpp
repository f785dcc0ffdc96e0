// What a run promises beside the numbers: exit codes, what lies in the output folder, what is printed, and what a second run does.

#include <signal.h>

#include <filesystem>
#include <set>
#include <sstream>

#include "checkpoint/files.h"
#include "tests/e2e/fixtures.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

class RunContract : public ::testing::Test {
 protected:
  void SetUp() override { recipe_ = folder_.write("recipe.yaml", recipe_text(shipped_llama(), shipped_text(), output_)); }

  ProgramResult run(std::vector<std::string> words = {}, int ranks = 1) {
    words.insert(words.begin(), recipe_);
    return run_program(words, {.ranks = ranks});
  }

  TemporaryFolder folder_;
  std::string output_ = folder_ / "out", recipe_;
};

TEST_F(RunContract, TheSecondRunOfTheSameRecipeSaysComplete) {
  expect_success(run());
  const auto before = fs::last_write_time(output_ + "/model.safetensors");

  const ProgramResult again = run(), at_two = run({"parallel.tensor=2"}, 2);

  expect_success(again);
  expect_success(at_two);
  EXPECT_NE(again.err.find("complete"), std::string::npos) << again.report();
  EXPECT_NE(at_two.err.find("complete"), std::string::npos) << at_two.report();
  EXPECT_EQ(fs::last_write_time(output_ + "/model.safetensors"), before);
}

TEST_F(RunContract, AnotherOutputInThePlaceIsKeptUnlessOverwritten) {
  expect_success(run());
  const auto before = file_sums(output_);

  const ProgramResult refused = run({"quantization.preset=fp8"});
  EXPECT_EQ(refused.exit_code, 2) << refused.report();
  EXPECT_EQ(refused.errors().size(), 1u);
  EXPECT_NE(refused.err.find(output_), std::string::npos) << refused.report();
  EXPECT_EQ(file_sums(output_), before);

  expect_success(run({"quantization.preset=fp8", "output.overwrite=true"}));
  EXPECT_EQ(read_json_file(output_ + "/hf_quant_config.json").at("quantization").at("quant_algo"), "FP8");
  EXPECT_FALSE(fs::exists(output_ + ".work"));
}

TEST_F(RunContract, AFolderOfTheUserIsNeverTakenForAnOutput) {
  fs::create_directories(output_);
  write_file(output_ + "/thesis.tex", "mine");

  const ProgramResult refused = run();

  EXPECT_EQ(refused.exit_code, 2) << refused.report();
  EXPECT_EQ(read_file(output_ + "/thesis.tex"), "mine");
}

TEST_F(RunContract, TheWorkFolderOfAnotherProgramIsLeftAlone) {
  fs::create_directories(output_ + ".work");
  write_file(output_ + ".work/thesis.tex", "mine");

  const ProgramResult refused = run();

  EXPECT_EQ(refused.exit_code, 2) << refused.report();
  EXPECT_EQ(read_file(output_ + ".work/thesis.tex"), "mine");
  EXPECT_FALSE(fs::exists(output_));
}

TEST_F(RunContract, OverridesChangeKeysByTheirDottedPath) {
  expect_success(
      run({"quantization.preset=fp8", "quantization.kv_cache=fp8", "output.path=" + folder_ / "other", "calibration.samples=3"}));

  EXPECT_FALSE(fs::exists(output_));
  const Json manifest = read_json_file(folder_ / "other/ptq-runner/manifest.json");
  EXPECT_EQ(manifest.at("decisions").at("model.layers.0.mlp.up_proj").at("format"), "fp8");
  EXPECT_EQ(manifest.at("data").at("rows"), 3);
  EXPECT_EQ(read_tensors(folder_ / "other").count("model.layers.0.self_attn.k_proj.k_scale"), 1u);
}

TEST_F(RunContract, TheWordRunIsOptional) {
  expect_success(run_program({"run", recipe_}));
  EXPECT_TRUE(fs::exists(output_ + "/model.safetensors"));
}

TEST_F(RunContract, QuietPrintsNothing) {
  const ProgramResult result = run({"--quiet"});

  expect_success(result);
  EXPECT_EQ(result.out + result.err, "");
}

TEST_F(RunContract, OneLineALayerAndASummaryAreOnStderr) {
  for (const int ranks : {1, 2}) {
    const ProgramResult result = run({"output.overwrite=true", "output.path=" + output_ + std::to_string(ranks)}, ranks);

    expect_success(result);
    for (int layer = 1; layer <= 6; ++layer) {
      const std::string words = "layer " + std::to_string(layer) + "/6";
      const size_t at = result.err.find(words);
      EXPECT_NE(at, std::string::npos) << words << "\n" << result.report();
      EXPECT_EQ(result.err.find(words, at + 1), std::string::npos) << words << " twice\n" << result.report();
    }
    EXPECT_EQ(result.err.find('\r'), std::string::npos) << "a progress bar without a terminal";
    const std::string last = result.err.substr(result.err.rfind('\n', result.err.size() - 2) + 1);
    for (const std::string& words : {output_, std::string("bits per weight"), std::string("smaller than the source")})
      EXPECT_NE(last.find(words), std::string::npos) << last;
  }
}

TEST_F(RunContract, TheOutputFolderHoldsWhatItShouldAndNothingElse) {
  expect_success(run({"quantization.kv_cache=fp8"}));

  const std::vector<std::string> files = checkpoint::list_files(output_);
  const std::set<std::string> found(files.begin(), files.end());
  std::set<std::string> wanted{
      "config.json",           "generation_config.json",    "hf_quant_config.json",     "model.safetensors",      "tokenizer.json",
      "tokenizer_config.json", "ptq-runner/calibration.h5", "ptq-runner/manifest.json", "ptq-runner/recipe.yaml", "ptq-runner/run.jsonl",
      "fixture.json"};
  for (int layer = 0; layer < 6; ++layer) wanted.insert("ptq-runner/calibration/layer_" + std::to_string(layer) + ".h5");
  EXPECT_EQ(found, wanted);
  EXPECT_FALSE(fs::exists(output_ + ".work"));
  std::set<std::string> beside;
  for (const auto& entry : fs::directory_iterator(folder_.path())) beside.insert(entry.path().filename().string());
  EXPECT_EQ(beside, (std::set<std::string>{"out", "recipe.yaml"}));
  for (const std::string name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    EXPECT_TRUE(read_file(output_ + "/" + name) == read_file(shipped_llama() + "/" + name)) << name;
}

TEST_F(RunContract, ConfigKeepsEveryKeyOfTheSource) {
  expect_success(run());

  Json config = read_json_file(output_ + "/config.json");
  EXPECT_EQ(config.at("quantization_config").at("quant_method"), "modelopt");
  config.erase("quantization_config");
  EXPECT_EQ(config, read_json_file(shipped_llama() + "/config.json"));
}

TEST_F(RunContract, EveryLineOfTheRunLogIsAnEvent) {
  expect_success(run({}, 2));

  std::istringstream log(read_file(output_ + "/ptq-runner/run.jsonl"));
  std::set<std::string> phases;
  double last = 0;
  for (std::string line; std::getline(log, line);) {
    const Json event = Json::parse(line, nullptr, false);
    ASSERT_TRUE(event.is_object()) << line;
    phases.insert(event.at("phase").get<std::string>());
    EXPECT_GE(event.at("seconds").get<double>(), last);
    last = event.at("seconds").get<double>();
  }
  for (const char* phase : {"plan", "layer", "transferred", "verified"}) EXPECT_EQ(phases.count(phase), 1u) << phase;
}

TEST_F(RunContract, TheManifestKnowsEveryFile) {
  expect_success(run({"output.max_shard_size=2MB"}, 3));

  const Json files = read_json_file(output_ + "/ptq-runner/manifest.json").at("files");
  std::set<std::string> named, there;
  for (const auto& [name, sum] : files.items()) {
    named.insert(name);
    EXPECT_EQ(sum, checkpoint::sha256_file(output_ + "/" + name)) << name;
  }
  for (const std::string& name : checkpoint::list_files(output_)) there.insert(name);
  there.erase("ptq-runner/manifest.json");
  there.erase("ptq-runner/run.jsonl");  // it still grows while the sums are taken
  EXPECT_EQ(named, there);
}

TEST_F(RunContract, TheRecipeThatIsKeptMakesTheSameOutputAgain) {
  expect_success(run({"quantization.kv_cache=fp8", R"(quantization.rules=[{match: "re:.*self_attn.*", format: fp8}])"}));

  const ProgramResult again = run_program({output_ + "/ptq-runner/recipe.yaml", "output.path=" + folder_ / "again"});

  expect_success(again);
  EXPECT_EQ(file_sums(output_), file_sums(folder_ / "again"));
}

TEST_F(RunContract, AnInterruptedRunLeavesNothingInTheWayOfTheNext) {
  fs::create_directories(output_ + ".work/ptq-runner");
  write_file(output_ + ".work/model.safetensors", "half of it");

  expect_success(run());

  EXPECT_FALSE(fs::exists(output_ + ".work"));
  EXPECT_GT(fs::file_size(output_ + "/model.safetensors"), 1000000u);
}

TEST_F(RunContract, PathsMayHaveSpacesLinksAndFoldersThatAreNotThereYet) {
  fs::create_directory_symlink(shipped_llama(), folder_ / "a link to llama");
  const std::string output = folder_ / "not there/nor this/the output";

  expect_success(run({"model.path=" + folder_ / "a link to llama", "output.path=" + output + "/"}, 2));

  EXPECT_TRUE(fs::exists(output + "/model.safetensors"));
  EXPECT_FALSE(fs::exists(output + ".work"));
  EXPECT_FALSE(fs::exists(output + "/.work"));
}

TEST_F(RunContract, AMixedOutputWithAQuantizedHeadAndCacheIsEvaluatedAlikeByAllRankCounts) {
  expect_success(
      run({"quantization.kv_cache=fp8", "quantization.ignore=[]", R"(quantization.rules=[{match: "*.self_attn.*", format: fp8}])"}));
  const std::vector<std::string> arguments{"--model", output_, "--reference", shipped_llama(), "--text", shipped_text(), "--samples", "7"};

  const Json one = evaluate(arguments), three = evaluate(arguments, {.ranks = 3});
  std::vector<std::string> weights_only = arguments;
  weights_only.emplace_back("--weights-only");

  EXPECT_EQ(one, three);
  EXPECT_GT(one.at("kl").get<double>(), 0.01);
  EXPECT_LT(one.at("kl").get<double>(), 3.0);
  EXPECT_NE(evaluate(weights_only).at("kl"), one.at("kl"));
}

TEST_F(RunContract, ADeadRankEndsTheJobAndLeavesNoOutput) {
  const std::string data = folder_.write("data.jsonl", random_documents(600, 512, 4096));
  RunningProgram job({recipe_, "calibration.data=" + data, "calibration.samples=600", "calibration.sequence_length=512", "--threads", "1"},
                     {.ranks = 2});
  ASSERT_TRUE(job.wait_for_words("layer 1/6", 50));
  const std::vector<pid_t> ranks = job.children();
  ASSERT_EQ(ranks.size(), 2u);

  ::kill(ranks[1], SIGKILL);
  const auto begin = std::chrono::steady_clock::now();
  const ProgramResult result = job.wait();

  EXPECT_FALSE(result.is_timed_out) << result.report();
  EXPECT_NE(result.exit_code, 0);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 10);
  EXPECT_FALSE(fs::exists(output_));
  expect_success(run());
}

TEST(Commands, HelpAndVersionAreOnStdout) {
  for (const int ranks : {1, 2}) {
    const ProgramResult help = run_program({"--help"}, {.ranks = ranks}), version = run_program({"--version"}, {.ranks = ranks});
    expect_success(help);
    expect_success(version);
    for (const std::string words : {"evaluate", "inspect", "verify", "tokenize"})
      EXPECT_NE(help.out.find(words), std::string::npos) << words;
    EXPECT_EQ(version.out.find("ptq-runner"), version.out.rfind("ptq-runner")) << version.report();
  }
  expect_success(run_program({"evaluate", "--help"}));
}

TEST(Commands, NoWordsAndUnknownFlagsAreUserErrors) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{}, {"--no-such-flag"}, {"evaluate"}, {"evaluate", "--model", "x"}}) {
    const ProgramResult result = run_program(words);
    EXPECT_EQ(result.exit_code, 2) << result.report();
    EXPECT_EQ(result.errors().size(), 1u) << result.report();
  }
}

TEST(Commands, InspectSaysWhatACheckpointIs) {
  const ProgramResult result = run_program({"inspect", shipped_llama(), "--json"});

  expect_success(result);
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json.at("family"), "llama");
  EXPECT_EQ(json.at("layers"), 6);
  EXPECT_EQ(json.at("bytes"), tensor_bytes(read_tensors(shipped_llama() + "/model.safetensors")));
  EXPECT_EQ(json.at("parameters"), 6819072);
  EXPECT_TRUE(json.at("quantization").is_null());
}

TEST_F(RunContract, InspectSaysHowAnOutputIsQuantized) {
  expect_success(run());
  const ProgramResult result = run_program({"inspect", output_, "--json"});

  expect_success(result);
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json.at("quantization"), "NVFP4");
  EXPECT_EQ(json.at("linears_by_format").at("nvfp4"), 42);
  EXPECT_EQ(json.at("parameters"), 6819072);
}

TEST(Commands, TokenizeGivesIdsLineByLine) {
  const ProgramResult result = run_program({"tokenize", shipped_llama()}, {.input = "{\"text\": \"Hello\"}\n{\"text\": \"\"}\n"});

  expect_success(result);
  std::istringstream lines(result.out);
  std::vector<Json> found;
  for (std::string line; std::getline(lines, line);) found.push_back(Json::parse(line));
  ASSERT_EQ(found.size(), 2u);
  EXPECT_GE(found[0].at("ids").size(), 1u);
  EXPECT_LT(found[1].at("ids").size(), found[0].at("ids").size());

  const ProgramResult broken = run_program({"tokenize", shipped_llama()}, {.input = "{\"text\": \"a\"}\nnot json\n"});
  EXPECT_EQ(broken.exit_code, 2);
  EXPECT_NE(broken.err.find("line 2"), std::string::npos) << broken.report();
}

}  // namespace
}  // namespace ptq::test
