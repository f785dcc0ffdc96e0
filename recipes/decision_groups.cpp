#include "recipes/decision_groups.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "recipes/decisions.h"

namespace ptq::recipes {

namespace {

using layers::LayerSpec, layers::LinearSpec;

int64_t weights_of(const LinearSpec& linear) { return linear.out * linear.in * std::max<int64_t>(linear.stack, 1); }

/// "a.b.q_proj,k_proj" for modules of one parent, else the container of a layer's experts, or the first, with their number.
std::string group_name(const LayerSpec& layer, const std::vector<const LinearSpec*>& linears) {
  const std::string& first = linears.front()->module;
  const size_t dot = first.rfind('.');
  const std::string parent = first.substr(0, dot + 1);
  std::string name = first;
  for (size_t i = 1; i < linears.size(); ++i) {
    const std::string& module = linears[i]->module;
    if (module.rfind('.') == dot && module.starts_with(parent)) {
      name += "," + module.substr(dot + 1);
      continue;
    }
    const bool is_routed = linears.front()->is_routed() && layer.moe();
    return (is_routed ? layer.moe()->module : first) + " (" + std::to_string(linears.size()) + " linears)";
  }
  return name;
}

/// Linears of a layer that must have one format, in the order of their first.
std::vector<std::vector<const LinearSpec*>> fused_linears(const LayerSpec& layer, bool by_expert) {
  std::vector<std::vector<const LinearSpec*>> groups;
  std::map<std::pair<bool, int>, size_t> index;  // routed?, expert or scale group
  for (const LinearSpec& linear : layer.linears) {
    const int key = !linear.is_routed() ? linear.scale_group : by_expert ? linear.expert : 0;
    const auto [at, is_new] = index.emplace(std::pair(linear.is_routed(), key), groups.size());
    if (is_new) groups.emplace_back();
    groups[at->second].push_back(&linear);
  }
  return groups;
}

/// By module, how this preset stores every linear of the layers; none where its layout cannot hold one.
std::map<std::string, Decision> decisions_of(const layers::ModelSpec& model, const Recipe& recipe) {
  const Encoding encoding = encoding_of(find_format(recipe.format, recipe.where("quantization.autoquantize.formats")).format, recipe);
  std::map<std::string, Decision> decisions;
  for (const LayerSpec& layer : model.layers)
    for (const LinearSpec& linear : layer.linears) {
      Decision& decision = decisions[linear.module];
      if (layout_fault(encoding, linear).empty()) decision.encoding = encoding;
    }
  decide_smoothing_vectors(model, recipe, decisions);
  return decisions;
}

int64_t stored_bits(const Encoding& encoding, const LinearSpec& linear) {
  int64_t bytes = 0;
  for (const EncodedTensor& part : encoded_tensors(encoding, linear))
    bytes += element_count(part.tensor.shape) * dtype_bytes(part.tensor.dtype);
  return 8 * bytes;
}

/// Of one bit of a routed expert, and of others, by layer: integers in the proportion of top_k / experts to 1.
class CostFactors {
 public:
  CostFactors(const layers::ModelSpec& model, const Recipe& recipe) : is_active_(recipe.autoquantize.cost == "active_moe") {
    if (!is_active_) return;
    for (const LayerSpec& layer : model.layers)
      if (layer.moe()) unit_ = std::lcm(unit_, layer.moe()->router.experts);
  }
  int64_t of(const LayerSpec& layer, const LinearSpec& linear) const {
    if (!is_active_ || !linear.is_routed()) return unit_;
    const layers::RouterSpec& router = layer.moe()->router;
    return unit_ / router.experts * router.top_k;
  }

 private:
  bool is_active_;
  int64_t unit_ = 1;
};

/// With four digits, away from what is out of reach.
std::string rounded(double bits, bool up) {
  const double digits = up ? std::ceil(bits * 1e4 - 1e-6) : std::floor(bits * 1e4 + 1e-6);
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.4g", digits / 1e4);
  if (std::strtod(text.data(), nullptr) != digits / 1e4) std::snprintf(text.data(), text.size(), "%.4f", digits / 1e4);
  return text.data();
}

int64_t counted_weights(const std::vector<DecisionGroup>& groups) {
  int64_t weights = 0;
  for (const DecisionGroup& group : groups) weights += group.factor * group.weights;
  return weights;
}

}  // namespace

std::vector<std::string> candidate_presets(const Recipe& recipe) {
  std::vector<std::string> presets = recipe.autoquantize.formats;
  if (std::count(presets.begin(), presets.end(), "none") == 0) presets.emplace_back("none");
  return presets;
}

Recipe with_preset(const Recipe& recipe, const std::string& preset) {
  const Preset& words = find_preset(preset, recipe.where("quantization.autoquantize.formats"));
  Recipe alone = recipe;
  alone.preset = preset;
  alone.format = words.format;
  alone.method = words.method;
  return alone;
}

std::vector<DecisionGroup> decision_groups(const layers::ModelSpec& model, const Recipe& recipe,
                                           const std::function<int64_t(const LinearSpec&)>& source_bits) {
  std::vector<std::map<std::string, Decision>> candidates;
  for (const std::string& preset : candidate_presets(recipe)) candidates.push_back(decisions_of(model, with_preset(recipe, preset)));
  const std::set<std::string> ignored = ignored_modules(model, recipe);
  const CostFactors factors(model, recipe);
  const bool by_expert = recipe.autoquantize.expert_granularity == "expert";
  std::vector<DecisionGroup> groups;
  for (const LayerSpec& layer : model.layers)
    for (const auto& linears : fused_linears(layer, by_expert)) {
      DecisionGroup group{group_name(layer, linears), {}, layer.index, 0, factors.of(layer, *linears.front()), {}};
      bool is_open = true;
      for (const LinearSpec* linear : linears) {
        group.modules.push_back(linear->module);
        const bool is_ignored = ignored.count(linear->module) > 0;
        is_open = is_open && !is_ignored;
        if (!is_ignored) group.weights += weights_of(*linear);
      }
      for (size_t c = 0; c < candidates.size(); ++c) {
        const bool is_none = recipe.autoquantize.formats.size() == c || recipe.autoquantize.formats[c] == "none";
        DecisionOption option{static_cast<int>(c), 0};
        bool is_held = is_none || is_open;
        for (const LinearSpec* linear : linears) {
          const Encoding& encoding = candidates[c].at(linear->module).encoding;
          is_held = is_held && (is_none || encoding.is_quantized());
          if (!is_held) break;
          if (ignored.count(linear->module) > 0) continue;
          option.bits += is_none ? source_bits(*linear) * weights_of(*linear) : stored_bits(encoding, *linear);
        }
        if (is_held) group.options.push_back(option);
      }
      groups.push_back(std::move(group));
    }
  return groups;
}

std::vector<KnapsackGroup> knapsack_groups(const std::vector<DecisionGroup>& groups, const std::vector<std::vector<double>>& scores) {
  require(groups.size() == scores.size(), "scores of other groups");
  std::vector<KnapsackGroup> knapsack;
  for (size_t g = 0; g < groups.size(); ++g) {
    knapsack.push_back({{}, scores[g]});
    for (const DecisionOption& option : groups[g].options) knapsack.back().costs.push_back(groups[g].factor * option.bits);
  }
  return knapsack;
}

double effective_bits(const std::vector<DecisionGroup>& groups, int64_t cost) {
  const int64_t weights = counted_weights(groups);
  return weights > 0 ? static_cast<double>(cost) / static_cast<double>(weights) : 0;
}

int64_t budget_of(const std::vector<DecisionGroup>& groups, double bits, const std::string& where) {
  if (counted_weights(groups) == 0)
    throw user_error("quantization.ignore leaves no linear whose format could be chosen", where, "ignore fewer modules");
  int64_t least = 0, most = 0;
  for (const DecisionGroup& group : groups) {
    const auto [low, high] = std::minmax_element(group.options.begin(), group.options.end(),
                                                 [](const DecisionOption& a, const DecisionOption& b) { return a.bits < b.bits; });
    least += group.factor * low->bits;
    most += group.factor * high->bits;
  }
  const double low = effective_bits(groups, least), high = effective_bits(groups, most);
  if (!(bits >= low && bits <= high)) {
    std::array<char, 32> asked{};
    std::snprintf(asked.data(), asked.size(), "%g", bits);
    throw user_error(std::string(asked.data()) + " effective bits cannot be reached: the candidates give " + rounded(low, true) +
                         " (all the cheapest) to " + rounded(high, false) + " (all the dearest)",
                     where, "choose a number between them, or other candidates");
  }
  return std::max(least, static_cast<int64_t>(std::floor(bits * static_cast<double>(counted_weights(groups)))));
}

}  // namespace ptq::recipes
