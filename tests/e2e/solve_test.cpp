// ptq-runner solve: decisions for other budgets from a file of scores, as users run it.

#include "checkpoint/stats_file.h"
#include "recipes/sensitivity.h"
#include "tests/e2e/fixtures.h"

namespace ptq::test {
namespace {

class Solve : public ::testing::Test {
 protected:
  void SetUp() override {
    // Two layers: the first hurts when it is quantized, the second hardly.
    recipes::Sensitivity scores;
    scores.identity.cost = "weights";
    scores.identity.expert_granularity = "layer";
    scores.presets = {"nvfp4", "fp8", "none"};
    const std::vector<recipes::DecisionOption> options{{0, 4500}, {1, 8000}, {2, 16000}};
    scores.groups.push_back({"l.0.q_proj,k_proj", {"l.0.q_proj", "l.0.k_proj"}, 0, 1000, 1, options});
    scores.groups.push_back({"l.1.down_proj", {"l.1.down_proj"}, 1, 1000, 1, options});
    scores.scores = {{9, 1, 0}, {0.5, 0.25, 0}};
    recipes::write_scores(scores_, scores);
  }
  ProgramResult solve(const std::vector<std::string>& words, const ProgramOptions& options = {}) {
    std::vector<std::string> arguments{"solve", scores_};
    arguments.insert(arguments.end(), words.begin(), words.end());
    return run_program(arguments, options);
  }

  TemporaryFolder folder_;
  std::string scores_ = folder_ / "scores.h5";
};

TEST_F(Solve, OneBudgetPrintsItsTable) {
  const ProgramResult result = solve({"--effective-bits", "6.25"});

  expect_success(result);
  EXPECT_NE(result.out.find("6.25 effective bits: 6.2500 reached, score 1.5, groups: 1 × nvfp4, 1 × fp8, 0 × none"), std::string::npos)
      << result.report();
  EXPECT_NE(result.out.find("l.0.q_proj,k_proj  fp8"), std::string::npos) << result.report();
  EXPECT_NE(result.out.find("l.1.down_proj      nvfp4"), std::string::npos) << result.report();
}

TEST_F(Solve, SeveralBudgetsAreOneLineEach) {
  const ProgramResult plain = solve({"--effective-bits", "4.5,8,16"}), verbose = solve({"--effective-bits", "4.5,8,16", "--verbose"});

  expect_success(plain);
  expect_success(verbose);
  EXPECT_EQ(std::count(plain.out.begin(), plain.out.end(), '\n'), 3) << plain.report();
  EXPECT_EQ(plain.out.find("l.0"), std::string::npos);
  EXPECT_EQ(std::count(verbose.out.begin(), verbose.out.end(), '\n'), 12) << verbose.report();
}

TEST_F(Solve, JsonHoldsTheSame) {
  const ProgramResult result = solve({"--effective-bits", "6.25", "--json"});

  expect_success(result);
  const Json json = Json::parse(result.out);
  ASSERT_EQ(json.size(), 1u);
  EXPECT_EQ(json[0]["effective_bits"], 6.25);
  EXPECT_EQ(json[0]["reached_bits"], 6.25);
  EXPECT_EQ(json[0]["score"], 1.5);
  EXPECT_EQ(json[0]["proven"], true);
  EXPECT_EQ(json[0]["groups_by_format"], (Json{{"nvfp4", 1}, {"fp8", 1}, {"none", 0}}));
  EXPECT_EQ(json[0]["groups"][0]["modules"][1], "l.0.k_proj");
  EXPECT_EQ(json[0]["groups"][0]["format"], "fp8");
  EXPECT_EQ(json[0]["groups"][1]["bits"], 4.5);
  EXPECT_FALSE(Json::parse(solve({"--effective-bits", "5,6", "--json"}).out)[0].contains("groups"));
}

TEST_F(Solve, TheOutputIsTheSameOnSeveralRanks) {
  const ProgramResult one = solve({"--effective-bits", "5,6"}), two = solve({"--effective-bits", "5,6"}, {.ranks = 2});

  expect_success(two);
  EXPECT_EQ(one.out, two.out);
}

void expect_refused(const ProgramResult& result, int exit_code, const std::string& words) {
  EXPECT_EQ(result.exit_code, exit_code) << result.report();
  EXPECT_EQ(result.errors().size(), 1u) << result.report();
  EXPECT_NE(result.err.find(words), std::string::npos) << "expected: " << words << "\n" << result.report();
  EXPECT_EQ(result.out, "");
}

TEST_F(Solve, BudgetsOutOfReachAreRefusedWithTheRange) {
  for (const char* bits : {"4", "5,17"})
    expect_refused(solve({"--effective-bits", bits}), 2, "the candidates give 4.5 (all the cheapest) to 16 (all the dearest)");
  for (const char* bits : {"-1", "0", "many", ""}) EXPECT_EQ(solve({"--effective-bits", bits}).exit_code, 2) << bits;
  EXPECT_EQ(solve({}).exit_code, 2);
}

TEST_F(Solve, WrongFilesAreRefused) {
  checkpoint::write_stats(folder_ / "calibration.h5", {{{"x", {1.0f}}}, {}, {}, {}});
  folder_.write("text.h5", "no scores");

  expect_refused(run_program({"solve", folder_ / "missing.h5", "--effective-bits", "5"}), 2, "no such file");
  expect_refused(run_program({"solve", folder_ / "calibration.h5", "--effective-bits", "5"}), 3, "not one of AutoQuantize's scores");
  expect_refused(run_program({"solve", folder_ / "text.h5", "--effective-bits", "5"}), 3, "not a sound statistics file");
}

}  // namespace
}  // namespace ptq::test
