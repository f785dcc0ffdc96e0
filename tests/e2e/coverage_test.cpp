// Did calibration reach the experts? Tokens are counted, starved experts named everywhere a user may look, thresholds kept, and tokens
// forced to experts change their input scales alone.

#include <filesystem>
#include <numeric>

#include "checkpoint/stats_file.h"
#include "kernels/core/dtype.h"
#include "tests/e2e/recipe_runs.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

constexpr int64_t kTokens = 6 * 40;

class Coverage : public RecipeRuns {
 protected:
  void SetUp() override { prepare(5, 6, 40); }

  /// Mixtral with so many experts, two a token, and data for it: of experts 0 and 1 each token visits one, of 2 and 3 too, and the others
  /// no token ever.
  void prepare(int64_t experts, int64_t rows, int length) {
    make_tiny_mixtral(folder_ / "model", {.experts = experts});
    edit_tensors(folder_ / "model/model.safetensors", [](StoredTensors& tensors) {
      for (const std::string layer : {"0", "1"}) {
        std::string& router = tensors.at("model.layers." + layer + ".block_sparse_moe.gate.weight").bytes;
        const size_t row = 64 * 2;
        for (const size_t expert : {size_t{0}, size_t{2}})
          for (size_t at = 0; at < row; ++at)
            router[(expert + 1) * row + at] = static_cast<char>(router[expert * row + at] ^ (at % 2 == 1 ? '\x80' : '\0'));
        std::fill(router.begin() + 4 * static_cast<int64_t>(row), router.end(), '\0');
      }
    });
    folder_.write("data.jsonl", random_documents(rows, length, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", static_cast<int>(rows), length);
  }

  std::string run(const std::string& name, int ranks, std::vector<std::string> words) {
    words.emplace_back("calibration.pack=false");
    return quantize(name, ranks, words);
  }
  static Json moe_report(const std::string& output) { return read_json_file(output + "/ptq-runner/report.json").at("moe"); }
};

std::vector<int64_t> counts(const Json& layer, const char* key) { return layer.at(key).get<std::vector<int64_t>>(); }

TEST_F(Coverage, IsCountedAndReportedEverywhere) {
  const std::string output = run("one", 1, {});

  const Json moe = moe_report(output);
  EXPECT_EQ(moe.at("min_tokens_per_expert"), 64);
  EXPECT_LE(moe.at("covered_fraction").get<double>(), 0.8);
  const checkpoint::Stats statistics = checkpoint::read_stats(output + "/ptq-runner/calibration.h5");
  ASSERT_EQ(moe.at("layers").size(), 2u);
  for (const Json& layer : moe.at("layers")) {
    const std::string module = layer.at("module");
    const std::vector<int64_t> tokens = counts(layer, "tokens");
    ASSERT_EQ(tokens.size(), 5u);
    EXPECT_EQ(tokens[0] + tokens[1], kTokens);
    EXPECT_EQ(tokens[2] + tokens[3], kTokens);
    EXPECT_EQ(tokens[4], 0);
    EXPECT_EQ(counts(layer, "forced_tokens"), std::vector<int64_t>(5, 0));
    const std::vector<int64_t> below = counts(layer, "experts_below_minimum");
    EXPECT_EQ(below.back(), 4);
    const std::vector<float>& kept = statistics.arrays.at(module + "/tokens");
    EXPECT_EQ(std::vector<int64_t>(kept.begin(), kept.end()), tokens);
    for (const char* name : {"up_input_amax", "down_input_amax"}) {
      const std::vector<float>& amax = statistics.arrays.at(module + "/" + name);
      EXPECT_GT(amax[0], 0) << name;
      EXPECT_LT(amax[4], 0) << name << ": nothing was seen";
    }
    EXPECT_NE(last_.err.find("warning: " + module + ": expert"), std::string::npos) << last_.report();
  }
  EXPECT_NE(last_.err.find("4 (0"), std::string::npos) << last_.report();
  EXPECT_NE(last_.err.find("% of the experts saw at least 64 tokens"), std::string::npos) << last_.report();
  EXPECT_NE(read_file(output + "/ptq-runner/run.jsonl").find("starved_experts"), std::string::npos);

  // Its peers' largest input is what an expert that nothing was seen of gets.
  const StoredTensors stored = read_tensors(output);
  const std::string experts = "model.layers.1.block_sparse_moe.experts.";
  for (const char* part : {".w1.input_scale", ".w2.input_scale", ".w3.input_scale"})
    EXPECT_EQ(stored.at(experts + "4" + part).scalar(), stored.at(experts + "0" + part).scalar()) << part;
}

TEST_F(Coverage, IsTheSameAtAllRankCounts) {
  const std::string one = run("one", 1, {});
  const std::string report = read_file(one + "/ptq-runner/report.json"), statistics = read_file(one + "/ptq-runner/calibration.h5");
  const std::vector<std::pair<int, std::vector<std::string>>> ways{
      {2, {"parallel.expert=2"}}, {4, {"parallel.pipeline=2", "parallel.tensor=2"}}, {3, {}}};
  for (const auto& [ranks, words] : ways) {
    const std::string output = run("other", ranks, words);
    EXPECT_EQ(read_file(output + "/ptq-runner/report.json"), report) << words.size();
    EXPECT_TRUE(checkpoint::read_stats(output + "/ptq-runner/calibration.h5").arrays ==
                checkpoint::read_stats(one + "/ptq-runner/calibration.h5").arrays);
    std::filesystem::remove_all(output);
  }
}

TEST_F(Coverage, BelowWhatTheRecipeAsksForEndsTheRun) {
  struct Threshold {
    std::string key;
    std::vector<std::string> words;
  };
  const std::vector<Threshold> thresholds{
      {"moe.unseen=fail", {"moe.unseen", "block_sparse_moe.experts", "4 (0", "calibration.samples", "force_route"}},
      {"moe.fail_below_coverage=1.0", {"moe.fail_below_coverage", "block_sparse_moe.experts", "4 (0", "force_route"}}};
  for (const auto& [key, words] : thresholds)
    for (const int ranks : {1, 2}) {
      const std::string output = folder_ / "never";
      std::vector<std::string> arguments{folder_ / "recipe.yaml", "output.path=" + output, "calibration.pack=false", key};
      if (ranks > 1) arguments.emplace_back("parallel.pipeline=2");

      const ProgramResult result = run_program(arguments, {.ranks = ranks});

      EXPECT_EQ(result.exit_code, 1) << result.report();
      EXPECT_EQ(result.errors().size(), 1u) << result.report();
      for (const std::string& part : words) EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.report();
      EXPECT_FALSE(std::filesystem::exists(output));
      EXPECT_FALSE(std::filesystem::exists(output + ".work"));
    }
}

TEST_F(Coverage, AboveWhatTheRecipeAsksForIsNoFailure) {
  run("some", 1, {"moe.fail_below_coverage=0.5", "moe.min_tokens_per_expert=1"});
  run("all", 2, {"moe.unseen=fail", "moe.min_tokens_per_expert=0", "moe.fail_below_coverage=1.0"});
}

TEST_F(Coverage, IsCompleteWhenTokensAreForced) {
  const std::string plain = run("plain", 1, {}),
                    forced = run("forced", 1, {"moe.force_route=true", "moe.unseen=fail", "moe.fail_below_coverage=1.0"});

  const Json moe = moe_report(forced);
  EXPECT_EQ(moe.at("covered_fraction"), 1.0);
  const Json before = moe_report(plain).at("layers");
  for (size_t i = 0; i < 2; ++i) {
    const Json& layer = moe.at("layers").at(i);
    EXPECT_EQ(counts(layer, "tokens"), counts(before.at(i), "tokens")) << "routing itself must not change";
    EXPECT_EQ(counts(layer, "experts_below_minimum"), std::vector<int64_t>{});
    const std::vector<int64_t> tokens = counts(layer, "tokens"), visits = counts(layer, "forced_tokens");
    for (size_t e = 0; e < 5; ++e) {
      EXPECT_GE(tokens[e] + visits[e], 64) << e;
      if (tokens[e] >= 64) {
        EXPECT_EQ(visits[e], 0) << "expert " << e << " has enough of its own";
      }
    }
  }
  const StoredTensors without = read_tensors(plain), with = read_tensors(forced);
  ASSERT_EQ(without.size(), with.size());
  for (const auto& [name, tensor] : without) {
    const bool may_change = name.ends_with(".input_scale") && name.find(".experts.") != std::string::npos;
    if (may_change)
      EXPECT_GE(with.at(name).scalar(), tensor.scalar()) << name << ": more was seen";
    else
      EXPECT_TRUE(with.at(name) == tensor) << name;
  }
}

TEST_F(Coverage, ThatIsForcedIsTheSameBytesAtAllRankCounts) {
  const std::string one = run("one", 1, {"moe.force_route=true"});
  expect_same_output(one, run("expert_2", 2, {"moe.force_route=true", "parallel.expert=2"}));
  expect_same_output(one, run("data_3", 3, {"moe.force_route=true"}));
  expect_same_output(one, run("grid", 4, {"moe.force_route=true", "parallel.tensor=2", "parallel.pipeline=2"}));
  expect_same_output(one, run("grid_expert_4", 4, {"moe.force_route=true", "parallel.tensor=2", "parallel.expert=4"}));
  const std::string report = "/ptq-runner/report.json";
  EXPECT_EQ(read_file(one + report), read_file(folder_ / "grid_expert_4" + report));
}

TEST_F(Coverage, OfFewTokensForcesAllThereAre) {
  // 240 tokens cannot be 1000 for every expert; each token visits every expert then.
  const std::string output = run("few", 2, {"moe.force_route=true", "moe.min_tokens_per_expert=1000"});
  for (const Json& layer : moe_report(output).at("layers")) {
    const std::vector<int64_t> tokens = counts(layer, "tokens"), visits = counts(layer, "forced_tokens");
    for (size_t e = 0; e < 5; ++e) EXPECT_EQ(tokens[e] + visits[e], kTokens) << e;
    EXPECT_EQ(counts(layer, "experts_below_minimum").size(), 5u);
  }
}

TEST_F(Coverage, IsForcedEvenlyWhereFewTokensAreEnough) {
  // 4 starved experts ask for 16 visits of 256 tokens: every 16th token, two of a row. The rows must take turns.
  prepare(8, 8, 32);
  const std::string output = run("few", 2, {"moe.force_route=true", "moe.min_tokens_per_expert=2", "moe.unseen=fail"});
  for (const Json& layer : moe_report(output).at("layers"))
    for (size_t e = 4; e < 8; ++e) EXPECT_GE(counts(layer, "forced_tokens")[e], 2) << e;
}

TEST_F(Coverage, OfStackedExpertsIsForcedAsWell) {
  make_tiny_llama4(folder_ / "model", {.experts = 6});
  const std::string one = run("one", 1, {"moe.force_route=true", "moe.fail_below_coverage=1.0", "moe.min_tokens_per_expert=50"}),
                    plain = run("plain", 1, {"moe.min_tokens_per_expert=50"});
  expect_same_output(
      one, run("two", 2, {"moe.force_route=true", "moe.fail_below_coverage=1.0", "moe.min_tokens_per_expert=50", "parallel.expert=2"}));
  const StoredTensors without = read_tensors(plain);
  for (const auto& [name, tensor] : read_tensors(one)) EXPECT_TRUE(tensor == without.at(name) || name.ends_with("_input_scale")) << name;
}

TEST_F(Coverage, IsNotAskedForWhereNothingIsCalibrated) {
  const std::string output = run("weights_only", 1, {"quantization.preset=none", "moe.unseen=fail", "moe.fail_below_coverage=1.0"});
  EXPECT_FALSE(std::filesystem::exists(output + "/ptq-runner/report.json"));
}

}  // namespace
}  // namespace ptq::test
