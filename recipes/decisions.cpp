#include "recipes/decisions.h"

#include <fnmatch.h>

#include <algorithm>
#include <regex>

namespace ptq::recipes {

bool matches(const std::string& pattern, const std::string& name) {
  if (pattern.rfind("re:", 0) == 0) {
    try {
      return std::regex_match(name, std::regex(pattern.substr(3)));
    } catch (const std::regex_error& error) {
      throw user_error("'" + pattern + "' is not a regular expression: " + error.what(), "quantization.ignore or rules");
    }
  }
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

namespace {

void check_linear(const layers::LinearSpec& linear, const Decision& decision) {
  const FormatInfo& format = info(decision.format);
  if (format.group_size > 0 && linear.in % format.group_size != 0)
    throw user_error(linear.module + " has " + std::to_string(linear.in) + " inputs, which is not a multiple of the " +
                         std::to_string(format.group_size) + " that " + format.name + " groups",
                     "quantization (" + decision.reason + ")",
                     "leave it out: quantization.ignore: [\"lm_head\", \"" + linear.module + "\"], or give it another format by a rule");
}

void check_scale_groups(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions) {
  for (const auto& a : layer.linears)
    for (const auto& b : layer.linears) {
      if (a.scale_group != b.scale_group) continue;
      const Decision &first = decisions.at(a.module), &second = decisions.at(b.module);
      if (first.format != second.format)
        throw user_error("servers fuse " + a.module + " and " + b.module + " into one, but they get " + info(first.format).name + " (" +
                             first.reason + ") and " + info(second.format).name + " (" + second.reason + ")",
                         "quantization.rules", "give q_proj, k_proj and v_proj one format, and gate_proj and up_proj one");
    }
}

}  // namespace

std::map<std::string, Decision> decide_formats(const layers::ModelSpec& model, const Recipe& recipe) {
  std::vector<const layers::LinearSpec*> linears;
  for (const auto& layer : model.layers)
    for (const auto& linear : layer.linears) linears.push_back(&linear);
  linears.push_back(&model.lm_head);

  const Format base = find_format(recipe.format, recipe.where("quantization.format")).format;
  std::map<std::string, Decision> decisions;
  std::vector<int64_t> used(recipe.rules.size(), 0), ignored(recipe.rules.size(), 0);
  for (const auto* linear : linears) {
    Decision decision{base, recipe.preset.empty() ? "quantization.format" : "quantization.preset"};
    const auto pattern =
        std::find_if(recipe.ignore.begin(), recipe.ignore.end(), [&](const auto& p) { return matches(p, linear->module); });
    const bool is_ignored = pattern != recipe.ignore.end();
    for (size_t r = 0; r < recipe.rules.size(); ++r) {
      if (!matches(recipe.rules[r].match, linear->module)) continue;
      (is_ignored ? ignored : used)[r] += 1;
      decision = {find_format(recipe.rules[r].format, recipe.rules[r].where).format,
                  "rule " + std::to_string(r + 1) + ": " + recipe.rules[r].match};
    }
    if (is_ignored) decision = {Format::kNone, "ignore: " + *pattern};
    // A tied head is the embedding under another name: servers read one tensor for both.
    if (linear == &model.lm_head && model.tied && decision.format != Format::kNone) decision = {Format::kNone, "tied to the embedding"};
    check_linear(*linear, decision);
    decisions[linear->module] = decision;
  }
  for (size_t r = 0; r < recipe.rules.size(); ++r) {
    if (used[r] > 0) continue;
    if (ignored[r] > 0)
      throw user_error("rule '" + recipe.rules[r].match + "' matches only modules that quantization.ignore leaves out",
                       recipe.rules[r].where, "take them off quantization.ignore (its default is [lm_head]), or remove the rule");
    std::vector<std::string> names;
    for (const auto* linear : linears) names.push_back(linear->module);
    const std::string near = nearest(recipe.rules[r].match, names);
    throw user_error("rule '" + recipe.rules[r].match + "' matches no linear of this model", recipe.rules[r].where,
                     near.empty() ? "module names look like " + linears.front()->module : "did you mean '" + near + "'?");
  }
  for (const auto& layer : model.layers) check_scale_groups(layer, decisions);
  return decisions;
}

bool needs_calibration(const std::map<std::string, Decision>& decisions, const Recipe& recipe) {
  if (recipe.kv_cache != "none") return true;
  return std::any_of(decisions.begin(), decisions.end(), [](const auto& entry) { return info(entry.second.format).quantizes_activations; });
}

}  // namespace ptq::recipes
