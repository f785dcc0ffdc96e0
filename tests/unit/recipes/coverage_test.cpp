#include "recipes/coverage.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_moe.h"

namespace ptq::recipes {
namespace {

/// Coverage of layer `index` of a model whose experts saw these tokens.
LayerCoverage covered(int64_t index, const std::vector<int64_t>& tokens, const MoeRules& rules, int64_t forced = 0) {
  const auto model = test::tiny_qwen3_moe(index + 1, static_cast<int64_t>(tokens.size()));
  LayerStatistics statistics;
  for (const int64_t count : tokens) statistics.experts.push_back({count, forced, 1.0f, 1.0f});
  return coverage_of(model.layers.back(), statistics, rules);
}

Recipe recipe_of(const std::string& unseen, double fail_below) {
  Recipe recipe;
  recipe.file = "r.yaml";
  recipe.moe.unseen = unseen;
  recipe.moe.fail_below_coverage = fail_below;
  recipe.lines = {{"moe.unseen", 7}, {"moe.fail_below_coverage", 8}};
  return recipe;
}

TEST(CoverageOf, ListsExpertsBelowTheMinimum) {
  const LayerCoverage coverage = covered(3, {64, 63, 0, 100}, MoeRules{});

  EXPECT_EQ(coverage.layer, 3);
  EXPECT_EQ(coverage.module, "model.layers.3.mlp.experts");
  EXPECT_EQ(coverage.experts, 4);
  EXPECT_EQ(coverage.starved, (std::vector<int>{1, 2}));
  EXPECT_EQ(coverage.tokens, (std::vector<int64_t>{64, 63, 0, 100}));
}

TEST(CoverageOf, ForcedTokensCount) {
  EXPECT_EQ(covered(0, {64, 60, 0}, MoeRules{}, 4).starved, std::vector<int>{2});
  EXPECT_EQ(covered(0, {64, 60, 0}, MoeRules{}, 4).forced, (std::vector<int64_t>{4, 4, 4}));
}

TEST(CoverageOf, AMinimumOfZeroStarvesNobody) {
  MoeRules rules;
  rules.min_tokens_per_expert = 0;

  EXPECT_TRUE(covered(0, {0, 0}, rules).starved.empty());
}

TEST(CoverageOf, NothingObservedIsNothingStarved) {
  const LayerCoverage coverage = covered(0, {}, MoeRules{});

  EXPECT_EQ(coverage.experts, 0);
  EXPECT_TRUE(coverage.starved.empty());
  EXPECT_EQ(covered_fraction({coverage}), 1.0);
  EXPECT_NO_THROW(check_coverage({coverage}, recipe_of("fail", 1.0)));
}

TEST(Describe, NamesAFewAndCountsTheRest) {
  MoeRules rules;

  EXPECT_EQ(describe(covered(0, {64, 64}, rules), rules), "");
  EXPECT_EQ(describe(covered(0, {64, 5}, rules), rules),
            "expert 1 (5 tokens) of 2 saw fewer than 64 tokens: it has the scales of its layer");
  EXPECT_EQ(describe(covered(0, {0, 99, 12}, rules), rules),
            "experts 0 (0 tokens) and 2 (12) of 3 saw fewer than 64 tokens: they have the scales of their layer");
  rules.unseen = "fail";
  EXPECT_EQ(describe(covered(0, {1, 2, 3, 4, 5, 6, 7, 99}, rules), rules),
            "experts 0 (1 tokens), 1 (2), 2 (3), 3 (4), 4 (5) and 2 more of 8 saw fewer than 64 tokens");
}

TEST(CoveredFraction, IsOverAllExpertsOfAllLayers) {
  const MoeRules rules;

  EXPECT_EQ(covered_fraction({}), 1.0);
  EXPECT_EQ(covered_fraction({covered(0, {99, 99}, rules), covered(1, {99, 0}, rules)}), 0.75);
  EXPECT_EQ(covered_fraction({covered(0, {0}, rules)}), 0.0);
}

TEST(CheckCoverage, StarvedExpertsAreFineUnlessTheRecipeSaysOtherwise) {
  const MoeRules rules;
  const std::vector<LayerCoverage> layers{covered(0, {99, 99}, rules), covered(1, {99, 0}, rules)};

  EXPECT_NO_THROW(check_coverage(layers, recipe_of("peer_max", 0.0)));
  EXPECT_NO_THROW(check_coverage(layers, recipe_of("peer_max", 0.75)));
  EXPECT_NO_THROW(check_coverage({layers[0]}, recipe_of("fail", 1.0)));
}

TEST(CheckCoverage, FailForUnseenExpertsNamesLayerKeysAndFix) {
  const std::vector<LayerCoverage> layers{covered(0, {99, 3}, MoeRules{}), covered(1, {5, 0}, MoeRules{})};

  for (const char* words :
       {"model.layers.1.mlp.experts: experts 0 (5 tokens) and 1 (0) of 2", "model.layers.0.mlp.experts: expert 1", "r.yaml:7  moe.unseen",
        "moe.min_tokens_per_expert", "moe.unseen: peer_max", "moe.force_route: true", "calibration.samples"})
    test::expect_error(ErrorKind::kCheck, words, [&] { check_coverage(layers, recipe_of("fail", 0.0)); });
}

TEST(CheckCoverage, TooSmallAFractionNamesBothNumbers) {
  const std::vector<LayerCoverage> layers{covered(0, {99, 99}, MoeRules{}), covered(1, {99, 0}, MoeRules{})};

  for (const char* words :
       {"only 0.7500 of the experts", "less than 0.9000", "r.yaml:8  moe.fail_below_coverage", "model.layers.1.mlp.experts"})
    test::expect_error(ErrorKind::kCheck, words, [&] { check_coverage(layers, recipe_of("peer_max", 0.9)); });
}

TEST(CheckCoverage, ShowsTheThreeWorstLayersAndWhatIsLeftToTry) {
  std::vector<LayerCoverage> layers;
  for (int64_t i = 0; i < 6; ++i)
    layers.push_back(covered(i, i == 4 ? std::vector<int64_t>{0, 0} : std::vector<int64_t>{0, 99}, MoeRules{}));
  Recipe recipe = recipe_of("fail", 0.0);
  recipe.moe.force_route = true;

  try {
    check_coverage(layers, recipe);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_LT(error.message().find("layers.4"), error.message().find("layers.0")) << error.message();
    EXPECT_NE(error.message().find("and 3 more layers"), std::string::npos) << error.message();
    EXPECT_EQ(error.fix().find("force_route"), std::string::npos) << "it is on already: " << error.fix();
  }
}

}  // namespace
}  // namespace ptq::recipes
