#pragma once
// Did calibration reach the experts? Statistics of few tokens are a guess; the recipe says how few are too few and what then.

#include <string>
#include <vector>

#include "recipes/minmax.h"
#include "recipes/recipe.h"

namespace ptq::recipes {

/// Experts of one layer whose tokens (routed and forced) are fewer than moe.min_tokens_per_expert.
struct LayerCoverage {
  int64_t layer = 0;
  std::string module;  ///< the experts' container
  int64_t experts = 0;
  std::vector<int> starved;             ///< ascending
  std::vector<int64_t> tokens, forced;  ///< by expert
};
LayerCoverage coverage_of(const layers::LayerSpec& layer, const LayerStatistics& statistics, const MoeRules& rules);

/// "experts 3 (0 tokens), 17 (12) and 5 more of 128 saw fewer than 64 tokens: ..." for the log; "" when none is starved.
std::string describe(const LayerCoverage& coverage, const MoeRules& rules);
/// Fraction of all experts of all layers that are not starved; 1 without experts.
double covered_fraction(const std::vector<LayerCoverage>& layers);
/// Throws a check Error (exit 1) when `unseen: fail` and some expert is starved, or the covered fraction is below fail_below_coverage.
/// Names the worst layers, the keys and what to do (more samples, force_route).
void check_coverage(const std::vector<LayerCoverage>& layers, const Recipe& recipe);

}  // namespace ptq::recipes
