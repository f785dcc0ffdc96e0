#include "recipes/coverage.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace ptq::recipes {

namespace {

std::string keys_to_turn(const Recipe& recipe, const std::string& last) {
  return std::string("raise calibration.samples or sequence_length, ") + (recipe.moe.force_route ? "" : "set moe.force_route: true, ") +
         "lower moe.min_tokens_per_expert (" + std::to_string(recipe.moe.min_tokens_per_expert) + "), or " + last;
}

/// "0.8333": as many digits as tell a threshold from what was reached.
std::string fraction(double value) {
  std::string text = std::to_string(value);
  return text.substr(0, text.size() - 2);
}

/// The three layers with the most starved experts, each with its line of describe().
std::string worst_of(const std::vector<LayerCoverage>& layers, const MoeRules& rules) {
  std::vector<const LayerCoverage*> order;
  for (const auto& layer : layers)
    if (!layer.starved.empty()) order.push_back(&layer);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->starved.size() > b->starved.size(); });
  constexpr size_t kShown = 3;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, order.size()); ++i)
    text += (i > 0 ? "; " : "") + order[i]->module + ": " + describe(*order[i], rules);
  if (order.size() > kShown) text += "; and " + std::to_string(order.size() - kShown) + " more layers";
  return text;
}

}  // namespace

LayerCoverage coverage_of(const layers::LayerSpec& layer, const LayerStatistics& statistics, const MoeRules& rules) {
  LayerCoverage coverage;
  coverage.layer = layer.index;
  if (layer.moe()) coverage.module = layer.moe()->module;
  coverage.experts = static_cast<int64_t>(statistics.experts.size());
  for (size_t e = 0; e < statistics.experts.size(); ++e) {
    const ExpertStatistics& expert = statistics.experts[e];
    coverage.tokens.push_back(expert.tokens);
    coverage.forced.push_back(expert.forced);
    if (expert.tokens + expert.forced < rules.min_tokens_per_expert) coverage.starved.push_back(static_cast<int>(e));
  }
  return coverage;
}

std::string describe(const LayerCoverage& coverage, const MoeRules& rules) {
  if (coverage.starved.empty()) return "";
  constexpr size_t kShown = 5;
  const size_t starved = coverage.starved.size(), shown = std::min(kShown, starved);
  std::string text = starved == 1 ? "expert" : "experts";
  for (size_t i = 0; i < shown; ++i) {
    const auto expert = static_cast<size_t>(coverage.starved[i]);
    text += (i == 0             ? " "
             : i + 1 == starved ? " and "
                                : ", ") +
            std::to_string(expert) + " (" + std::to_string(coverage.tokens[expert] + coverage.forced[expert]) + (i == 0 ? " tokens)" : ")");
  }
  if (shown < starved) text += " and " + std::to_string(starved - shown) + " more";
  text += " of " + std::to_string(coverage.experts) + " saw fewer than " + std::to_string(rules.min_tokens_per_expert) + " tokens";
  if (rules.unseen == "peer_max") text += starved == 1 ? ": it has the scales of its layer" : ": they have the scales of their layer";
  return text;
}

double covered_fraction(const std::vector<LayerCoverage>& layers) {
  int64_t experts = 0, starved = 0;
  for (const auto& layer : layers) {
    experts += layer.experts;
    starved += static_cast<int64_t>(layer.starved.size());
  }
  return experts == 0 ? 1.0 : static_cast<double>(experts - starved) / static_cast<double>(experts);
}

void check_coverage(const std::vector<LayerCoverage>& layers, const Recipe& recipe) {
  const double covered = covered_fraction(layers);
  const bool any_starved = std::any_of(layers.begin(), layers.end(), [](const auto& layer) { return !layer.starved.empty(); });
  if (recipe.moe.unseen == "fail" && any_starved)
    throw Error(ErrorKind::kCheck,
                "calibration reached some experts with fewer than moe.min_tokens_per_expert tokens, and moe.unseen is fail. " +
                    worst_of(layers, recipe.moe),
                recipe.where("moe.unseen"), keys_to_turn(recipe, "accept their layer's scales with moe.unseen: peer_max"));
  if (covered < recipe.moe.fail_below_coverage)
    throw Error(ErrorKind::kCheck,
                "calibration reached only " + fraction(covered) + " of the experts with moe.min_tokens_per_expert tokens, less than " +
                    fraction(recipe.moe.fail_below_coverage) + ". " + worst_of(layers, recipe.moe),
                recipe.where("moe.fail_below_coverage"), keys_to_turn(recipe, "lower moe.fail_below_coverage"));
}

}  // namespace ptq::recipes
