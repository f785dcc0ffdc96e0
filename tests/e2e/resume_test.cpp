// A run that was killed, gone on with: at other numbers of ranks, more than once, and refused where it would be another run.

#include <signal.h>

#include "tests/e2e/ways.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

/// Where one of several starts of a run is killed.
struct Kill {
  const char* words;  ///< on stderr
  int ranks;
  std::vector<std::string> more;
};

class Resume : public Ways {
 protected:
  std::vector<std::string> arguments(const std::string& name, const std::vector<std::string>& words, const std::vector<std::string>& more) {
    std::vector<std::string> all{folder_ / "recipe.yaml", "output.path=" + folder_ / name};
    for (const auto* list : {&words, &more}) all.insert(all.end(), list->begin(), list->end());
    return all;
  }

  /// Kills every process of the run as soon as it says so.
  void run_until(const Kill& kill, const std::string& name, const std::vector<std::string>& words) {
    SCOPED_TRACE(kill.words);
    RunningProgram running(arguments(name, words, kill.more), {.ranks = kill.ranks, .timeout_seconds = 120});
    ASSERT_TRUE(running.wait_for_words(kill.words, 100)) << running.wait().report();
    for (const pid_t rank : running.children()) ::kill(rank, SIGKILL);
    if (kill.ranks == 1) ::kill(running.pid(), SIGKILL);
    running.wait();
    ASSERT_TRUE(fs::exists(folder_ / (name + ".work"))) << "it was done before it was killed";
    EXPECT_FALSE(fs::exists(folder_ / name));
  }

  /// The recipe whole, and killed in all these places, have the same bytes.
  void expect_same_bytes_when_killed(const std::vector<Kill>& kills, const std::vector<std::string>& words) {
    last_ = run_program(arguments("whole", words, {}), {.timeout_seconds = 120});
    expect_success(last_);
    for (const Kill& kill : kills) ASSERT_NO_FATAL_FAILURE(run_until(kill, "killed", words));
    last_ = run_program(arguments("killed", words, {}), {.timeout_seconds = 120});
    expect_success(last_);
    EXPECT_NE(last_.err.find("going on"), std::string::npos) << last_.report();
    expect_same_output(folder_ / "whole", folder_ / "killed");
    EXPECT_EQ(report_of(folder_ / "whole"), report_of(folder_ / "killed"));
    for (const std::string file : {"/ptq-runner/calibration.h5", "/ptq-runner/scores.h5"}) {
      if (!fs::exists(folder_ / "whole" + file)) continue;
      EXPECT_EQ(read_file(folder_ / "whole" + file), read_file(folder_ / "killed" + file)) << file;
    }
    EXPECT_FALSE(fs::exists(folder_ / "killed.work"));
    EXPECT_FALSE(fs::exists(folder_ / "killed/ptq-runner/progress"));
  }

  /// run.jsonl, all starts of the run one after the other.
  std::vector<Json> events() {
    std::vector<Json> all;
    std::istringstream text(read_file(folder_ / "killed/ptq-runner/run.jsonl"));
    for (std::string line; std::getline(text, line);) all.push_back(Json::parse(line));
    return all;
  }
};

TEST_F(Resume, ACalibrationGoesOnAtAnyNumberOfRanks) {
  PTQ_NEEDS_SHARED(shared);
  write_recipe(shared + "/fixtures/models/llama", shared + "/fixtures/text/eval.jsonl", 33, 128);

  expect_same_bytes_when_killed(
      {{"layer 1/6", 1, {}}, {"layer 3/6", 2, {"parallel.tensor=2"}}, {"layer 4/6", 3, {}}, {"layer 5/6", 2, {"parallel.pipeline=2"}}},
      {"quantization.kv_cache=fp8", "calibration.pack=false"});

  // What was finished is not computed again: each start begins no more than a window before the last layer that was told of.
  int64_t told = 0, starts = 0;
  for (const Json& event : events()) {
    if (event.at("phase") == "layer") told = event.at("layer").get<int64_t>();
    if (event.at("phase") != "resumed") continue;
    EXPECT_GE(event.at("layer").get<int64_t>(), told - 2);
    ++starts;
  }
  EXPECT_GE(starts, 3);
}

TEST_F(Resume, ASearchOfExpertsGoesOn) {
  PTQ_NEEDS_SHARED(shared);
  write_recipe(shared + "/fixtures/models/deepseek-v3", shared + "/fixtures/text/eval.jsonl", 17, 96, "nvfp4_awq");

  expect_same_bytes_when_killed({{"layer 1/4", 2, {"parallel.expert=2"}}, {"layer 3/4", 2, {"parallel.tensor=2"}}},
                                {"calibration.pack=false"});
}

TEST_F(Resume, HiddenStatesCanBeComputedAgain) {
  write_recipe(shipped_llama(), shipped_text(), 33, 128);

  expect_same_bytes_when_killed({{"layer 4/6", 2, {}}}, {"resume.hidden_states=recompute"});

  const auto all = events();
  EXPECT_TRUE(std::any_of(all.begin(), all.end(), [](const Json& event) { return event.at("phase") == "recomputed"; }));
}

TEST_F(Resume, WithoutAForwardPassToo) {
  make_tiny_llama(folder_ / "model", {.hidden = 512, .intermediate = 2048, .layers = 24});
  write_recipe(folder_ / "model", shipped_text(), 1, 8, "fp8_pb_wo");

  expect_same_bytes_when_killed({{"layer 2/24", 1, {}}, {"layer 12/24", 2, {}}}, {"output.verify=false"});
}

TEST_F(Resume, AutoQuantizeGoesOnInEveryStep) {
  PTQ_NEEDS_SHARED(shared);
  write_recipe(shared + "/fixtures/models/llama", shared + "/fixtures/text/eval.jsonl", 17, 128, "auto");

  expect_same_bytes_when_killed(
      {{"layer 2/6", 1, {}},
       {"candidate fp8", 2, {"parallel.tensor=2"}},
       {"layer 4/6  forward", 1, {}},
       {"layer 2/6  backward", 2, {}},
       {"layer 4/6  backward", 2, {"parallel.tensor=2"}},
       {"mix 1", 1, {}}},
      {"calibration.pack=false", "output.verify=false", "quantization.autoquantize.kv_cache={formats: [fp8, nvfp4], effective_bits: 6}"});

  // A way back begins where the one before was cut off: at most the layer in which it was is scored again.
  int64_t scored = 0;
  for (const Json& event : events()) scored += event.at("phase") == "scored_layer" ? 1 : 0;
  EXPECT_LE(scored, 6 + 2);
}

TEST_F(Resume, AnotherRunIsRefusedAndMayStartOver) {
  write_recipe(shipped_llama(), shipped_text(), 33, 128);
  ASSERT_NO_FATAL_FAILURE(run_until({"layer 2/6", 1, {}}, "killed", {}));

  const ProgramResult refused = run_program(arguments("killed", {}, {"calibration.seed=7"}), {.ranks = 2});
  EXPECT_EQ(refused.exit_code, 2) << refused.report();
  EXPECT_EQ(refused.errors().size(), 1u);
  for (const char* words : {"differs in its", "recipe", "--restart", "killed.work"})
    EXPECT_NE(refused.err.find(words), std::string::npos) << words << "\n" << refused.report();
  EXPECT_TRUE(fs::exists(folder_ / "killed.work/ptq-runner/progress/calibration/progress.json"));

  last_ = run_program(arguments("killed", {}, {"calibration.seed=7", "--restart"}));
  expect_success(last_);
  EXPECT_EQ(last_.err.find("going on"), std::string::npos) << last_.report();
}

/// A run is asked to stop in this way as soon as it says so, and gone on with.
class Stopped : public Resume {
 protected:
  void expect_stop(const std::string& moment, int signal, int ranks, const std::string& words) {
    SCOPED_TRACE(words);
    RunningProgram running(arguments("killed", {}, {}), {.ranks = ranks, .timeout_seconds = 120});
    ASSERT_TRUE(running.wait_for_words(moment, 100)) << running.wait().report();
    if (ranks == 1) ::kill(running.pid(), signal);
    for (const pid_t rank : running.children()) ::kill(rank, signal);  // as srun does; mpirun passes SIGTERM on a second later
    const ProgramResult result = running.wait();
    EXPECT_EQ(result.exit_code, 75) << result.report();
    EXPECT_NE(result.err.find("stopped: " + words), std::string::npos) << result.report();
    EXPECT_TRUE(result.errors().empty()) << result.report();
    EXPECT_FALSE(fs::exists(folder_ / "killed"));
    EXPECT_TRUE(fs::exists(folder_ / "killed.work/ptq-runner/progress/calibration/progress.json"));
  }
  void expect_the_rest_makes_the_same_bytes() {
    expect_success(run_program(arguments("whole", {}, {})));
    last_ = run_program(arguments("killed", {}, {}));
    expect_success(last_);
    EXPECT_NE(last_.err.find("going on"), std::string::npos) << last_.report();
    expect_same_output(folder_ / "whole", folder_ / "killed");
    EXPECT_FALSE(fs::exists(folder_ / "killed/ptq-runner/lock"));
  }
  void SetUp() override { write_recipe(model(), ids(), 64, 128); }
  /// Many layers: none of the runs is over before it hears.
  std::string model() {
    make_tiny_llama(folder_ / "model", {.hidden = 128, .intermediate = 512, .layers = 48});
    return folder_ / "model";
  }
  std::string ids() {
    std::string lines;
    for (int64_t row = 0; row < 64; ++row) {
      Json row_ids = Json::array();
      for (int64_t i = 0; i < 128; ++i) row_ids.push_back((7 * row + 31 * i + row * i) % 128);
      lines += Json{{"input_ids", row_ids}}.dump() + "\n";
    }
    write_file(folder_ / "ids.jsonl", lines);
    return folder_ / "ids.jsonl";
  }
};

TEST_F(Stopped, BySigusr1AfterTheLayersAtHand) {
  expect_stop("layer 1/", SIGUSR1, 1, "SIGUSR1 was received");
  expect_stop("going on after layer", SIGUSR1, 2, "SIGUSR1 was received");
  expect_the_rest_makes_the_same_bytes();
}

TEST_F(Stopped, BySigtermAtOnce) {
  expect_stop("layer 3/", SIGTERM, 1, "SIGTERM was received");
  expect_stop("going on after layer", SIGTERM, 2, "SIGTERM was received");
  expect_the_rest_makes_the_same_bytes();
}

TEST_F(Stopped, ByATimeLimitThatIsNear) {
  std::vector<std::string> words{"env", "SLURM_JOB_END_TIME=" + std::to_string(::time(nullptr) + 10), program_path()};
  for (const std::string& argument : arguments("killed", {}, {})) words.push_back(argument);
  const ProgramResult result = run_command(words);
  EXPECT_EQ(result.exit_code, 75) << result.report();
  EXPECT_NE(result.err.find("time limit is too near"), std::string::npos) << result.report();
  expect_the_rest_makes_the_same_bytes();
}

TEST_F(Stopped, ByNothingThatASecondRunDoes) {
  RunningProgram running(arguments("killed", {}, {}), {.timeout_seconds = 120});
  ASSERT_TRUE(running.wait_for_words("layer 1/", 100)) << running.wait().report();
  const ProgramResult second = run_program(arguments("killed", {}, {}), {.ranks = 2});
  EXPECT_EQ(second.exit_code, 2) << second.report();
  EXPECT_NE(second.err.find("another run is writing this output: process " + std::to_string(running.pid())), std::string::npos)
      << second.report();
  const ProgramResult first = running.wait();
  EXPECT_EQ(first.exit_code, 0) << first.report();
}

TEST_F(Resume, DamagedProgressIsNamed) {
  write_recipe(shipped_llama(), shipped_text(), 33, 128);
  ASSERT_NO_FATAL_FAILURE(run_until({"layer 3/6", 1, {}}, "killed", {}));
  const std::string part = folder_ / "killed.work/ptq-runner/progress/calibration/part_0";
  std::string bytes = read_file(part);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_file(part, bytes);

  const ProgramResult refused = run_program(arguments("killed", {}, {}), {.ranks = 2});
  EXPECT_EQ(refused.exit_code, 3) << refused.report();
  for (const char* words : {"damaged", "part_0", "--restart"}) EXPECT_NE(refused.err.find(words), std::string::npos) << refused.report();
  expect_success(run_program(arguments("killed", {}, {"--restart"})));
}

}  // namespace
}  // namespace ptq::test
