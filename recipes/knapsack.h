#pragma once
// The multiple-choice knapsack: one option of every group, least total score within a budget of costs. It knows nothing of models; what the
// groups and options are is recipes/decision_groups.h. Pure functions of their arguments: the same answer on every rank.

#include <cstdint>
#include <vector>

namespace ptq::recipes {

/// Options in the order of candidates: option o costs costs[o] and scores scores[o], lower is better.
struct KnapsackGroup {
  std::vector<int64_t> costs;
  std::vector<double> scores;
};

/// One option of every group.
struct Mix {
  std::vector<int> choice;  ///< [groups]: index of an option
  int64_t cost = 0;
  double score = 0;
  /// No other is better. False only where so many mixes are equally good to the last digits (scores proportional to costs, costs without
  /// common divisors) that not all of them could be held against each other: then it is the best of millions that were.
  bool is_proven = true;
};

struct CostRange {
  int64_t least = 0, most = 0;
};
/// What the cheapest and the dearest option of every group cost together.
CostRange cost_range(const std::vector<KnapsackGroup>& groups);

/// The mix of least total score that costs at most `budget`. Of equal scores the one of least cost, then the one with the earlier option in
/// the first group that differs. Scores are converted once to integers in units of at most 2^-51 of what all groups could score together
/// (a power of two above groups x largest score, over 2^52): sums are exact and depend on no order. Throws a user Error when the cheapest
/// options exceed the budget, a bug for a group without options and for costs or scores that are negative or not finite.
Mix solve(const std::vector<KnapsackGroup>& groups, int64_t budget);

/// The best `count` different mixes within the budget, the first being solve's, in the order that it prefers; fewer where there are not so
/// many. Throws as solve does.
std::vector<Mix> best_mixes(const std::vector<KnapsackGroup>& groups, int64_t budget, int count);

struct ParetoPoint {
  int64_t cost = 0;
  double score = 0;
};
/// Mixes on the lower convex hull of all (cost, score), by ascending cost: from the cheapest options to the best ones, changing one group
/// at a time, most score per cost first.
std::vector<ParetoPoint> pareto(const std::vector<KnapsackGroup>& groups);

}  // namespace ptq::recipes
