#include "runner/solve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "checkpoint/files.h"
#include "recipes/sensitivity.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

/// One budget's decision.
struct Solution {
  double asked = 0, reached = 0;
  recipes::Mix mix;
};

const recipes::DecisionOption& chosen(const recipes::Sensitivity& scores, const Solution& solution, size_t group) {
  return scores.groups[group].options[static_cast<size_t>(solution.mix.choice[group])];
}

double score_of(const recipes::Sensitivity& scores, const Solution& solution, size_t group) {
  return scores.scores[group][static_cast<size_t>(solution.mix.choice[group])];
}

/// By candidate, how many groups have it.
std::vector<int64_t> counts(const recipes::Sensitivity& scores, const Solution& solution) {
  std::vector<int64_t> counts(scores.presets.size(), 0);
  for (size_t g = 0; g < scores.groups.size(); ++g) counts[static_cast<size_t>(chosen(scores, solution, g).candidate)] += 1;
  return counts;
}

/// Of the group's weights; 0 where none counts.
double bits_per_weight(const recipes::DecisionGroup& group, const recipes::DecisionOption& option) {
  return group.weights > 0 ? static_cast<double>(option.bits) / static_cast<double>(group.weights) : 0;
}

Json to_json(const recipes::Sensitivity& scores, const Solution& solution, bool with_groups) {
  Json number = Json::object();
  const std::vector<int64_t> by_candidate = counts(scores, solution);
  for (size_t c = 0; c < by_candidate.size(); ++c) number[scores.presets[c]] = by_candidate[c];
  Json json{{"effective_bits", solution.asked},
            {"reached_bits", solution.reached},
            {"score", solution.mix.score},
            {"proven", solution.mix.is_proven},
            {"groups_by_format", number}};
  if (!with_groups) return json;
  json["groups"] = Json::array();
  for (size_t g = 0; g < scores.groups.size(); ++g) {
    const recipes::DecisionOption& option = chosen(scores, solution, g);
    json["groups"].push_back({{"group", scores.groups[g].name},
                              {"modules", scores.groups[g].modules},
                              {"format", scores.presets[static_cast<size_t>(option.candidate)]},
                              {"bits", bits_per_weight(scores.groups[g], option)},
                              {"score", score_of(scores, solution, g)}});
  }
  return json;
}

void print(const recipes::Sensitivity& scores, const Solution& solution, bool with_groups) {
  std::string formats;
  const std::vector<int64_t> by_candidate = counts(scores, solution);
  for (size_t c = 0; c < by_candidate.size(); ++c)
    formats += fmt::format("{}{} × {}", c == 0 ? "" : ", ", by_candidate[c], scores.presets[c]);
  fmt::print("{:g} effective bits: {:.4f} reached, score {:.6g}, groups: {}{}\n", solution.asked, solution.reached, solution.mix.score,
             formats, solution.mix.is_proven ? "" : " (the best of millions, not proven to be the best of all)");
  if (!with_groups) return;
  size_t width = 5;
  for (const auto& group : scores.groups) width = std::max(width, group.name.size());
  fmt::print("  {:<{}}  {:<12} {:>8}  {}\n", "group", width, "format", "bits", "score");
  for (size_t g = 0; g < scores.groups.size(); ++g) {
    const recipes::DecisionOption& option = chosen(scores, solution, g);
    fmt::print("  {:<{}}  {:<12} {:>8.4f}  {:.6g}\n", scores.groups[g].name, width, scores.presets[static_cast<size_t>(option.candidate)],
               bits_per_weight(scores.groups[g], option), score_of(scores, solution, g));
  }
}

}  // namespace

void solve(const SolveOptions& options) {
  const recipes::Sensitivity scores = recipes::read_scores(options.scores);
  const std::vector<recipes::KnapsackGroup> groups = recipes::knapsack_groups(scores.groups, scores.scores);
  std::vector<int64_t> budgets;  // all are looked at before any is solved
  for (const double bits : options.effective_bits) budgets.push_back(recipes::budget_of(scores.groups, bits, "--effective-bits"));
  std::vector<Solution> solutions;
  for (size_t b = 0; b < budgets.size(); ++b) {
    recipes::Mix mix = recipes::solve(groups, budgets[b]);
    const double reached = recipes::effective_bits(scores.groups, mix.cost);
    solutions.push_back({options.effective_bits[b], reached, std::move(mix)});
  }
  const bool with_groups = options.verbose || solutions.size() == 1;
  if (options.json) {
    Json list = Json::array();
    for (const Solution& solution : solutions) list.push_back(to_json(scores, solution, with_groups));
    fmt::print("{}\n", list.dump(2));
  } else {
    for (const Solution& solution : solutions) print(scores, solution, with_groups);
  }
  std::fflush(stdout);
}

}  // namespace ptq::runner
