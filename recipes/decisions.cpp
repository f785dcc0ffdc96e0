#include "recipes/decisions.h"

#include <fnmatch.h>

#include <algorithm>
#include <optional>
#include <regex>

#include <set>
#include <variant>
#include "recipes/smoothing_plan.h"

namespace ptq::recipes {

namespace {

/// A glob or expression, made ready once: DeepSeek-V3 has 45,000 linears to try it on.
class Pattern {
 public:
  explicit Pattern(const std::string& text) : text_(text), is_plain_(text.find_first_of("*?[\\") == std::string::npos) {
    if (text.rfind("re:", 0) != 0) return;
    try {
      expression_.emplace(text.substr(3), std::regex::optimize);
    } catch (const std::regex_error& error) {
      throw user_error("'" + text + "' is not a regular expression: " + error.what(), "quantization.ignore or rules");
    }
  }

  const std::string& text() const { return text_; }
  bool matches(const std::string& name) const {
    if (expression_) return std::regex_match(name, *expression_);
    return is_plain_ ? name == text_ : fnmatch(text_.c_str(), name.c_str(), 0) == 0;
  }
  /// As quantization.ignore reads it: a plain name also stands for what ends in it, so that lm_head is language_model.lm_head.
  bool ignores(const std::string& name) const {
    if (matches(name)) return true;
    return is_plain_ && !expression_ && name.size() > text_.size() && name.ends_with(text_) && name[name.size() - text_.size() - 1] == '.';
  }

 private:
  std::string text_;
  bool is_plain_;
  std::optional<std::regex> expression_;
};

/// The routed experts of every layer, as a pattern: "*.mlp.experts.*".
std::string experts_pattern(const layers::LayerSpec& layer) {
  require(layer.moe() != nullptr, "a routed expert outside a mixture of experts");
  return "\"*" + layer.moe()->module.substr(layer.prefix.size()) + ".*\"";
}

void check_linear(const layers::LinearSpec& linear, const Decision& decision, const layers::LayerSpec* layer) {
  if (const std::string fault = layout_fault(decision.encoding, linear); !fault.empty())
    throw user_error(linear.module + " " + fault, "quantization (" + decision.reason + ")",
                     "leave it out: quantization.ignore: [\"lm_head\", " +
                         (linear.is_routed() ? experts_pattern(*layer) : "\"" + linear.module + "\"") +
                         "], or give it another format by a rule" +
                         (decision.encoding.dialect == Dialect::kModelOpt ? "" : ", or use output.dialect: modelopt"));
}

/// Servers fuse the linears of a scale group into one, and all routed experts of a layer into one kernel.
void check_fused(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions) {
  std::map<int, const layers::LinearSpec*> groups;
  const layers::LinearSpec* expert = nullptr;
  for (const auto& linear : layer.linears) {
    const layers::LinearSpec*& leader = linear.is_routed() ? expert : groups[linear.scale_group];
    if (!leader) leader = &linear;
    const Decision &first = decisions.at(leader->module), &second = decisions.at(linear.module);
    if (first.encoding.format == second.encoding.format) continue;
    const std::string both = leader->module + " and " + linear.module;
    const std::string formats =
        info(first.encoding.format).name + " (" + first.reason + ") and " + info(second.encoding.format).name + " (" + second.reason + ")";
    if (linear.is_routed())
      throw user_error("servers run all routed experts of a layer as one kernel, but " + both + " get " + formats, "quantization.rules",
                       "match all of them or none: " + experts_pattern(layer));
    throw user_error("servers fuse " + both + " into one, but they get " + formats, "quantization.rules",
                     "match all that are fused: q_proj, k_proj and v_proj; gate_proj and up_proj; q_a_proj and kv_a_proj_with_mqa");
  }
}

}  // namespace

std::set<int> output_linears(const layers::LayerSpec& layer) {
  std::set<int> found;
  for (const auto& block : layer.blocks) {
    if (const auto* attention = std::get_if<layers::AttentionSpec>(&block.body)) found.insert(attention->o);
    if (const auto* latent = std::get_if<layers::LatentAttentionSpec>(&block.body)) found.insert(latent->o);
    if (const auto* mlp = std::get_if<layers::MlpSpec>(&block.body)) found.insert(mlp->down);
    const auto* moe = std::get_if<layers::MoeSpec>(&block.body);
    if (!moe) continue;
    if (moe->shared) found.insert(moe->shared->down);
    for (const auto& expert : moe->experts) found.insert(expert.down);
  }
  return found;
}

bool is_modelopt_int4(const Encoding& encoding) {
  return encoding.dialect == Dialect::kModelOpt && (encoding.format == Format::kInt4 || encoding.format == Format::kInt4Fp8);
}

bool matches(const std::string& pattern, const std::string& name) { return Pattern(pattern).matches(name); }

std::set<std::string> ignored_modules(const layers::ModelSpec& model, const Recipe& recipe) {
  const std::vector<Pattern> ignore(recipe.ignore.begin(), recipe.ignore.end());
  std::set<std::string> modules;
  for (const auto& layer : model.layers)
    for (const auto& linear : layer.linears)
      if (std::any_of(ignore.begin(), ignore.end(), [&](const Pattern& pattern) { return pattern.ignores(linear.module); }))
        modules.insert(linear.module);
  return modules;
}

Encoding encoding_of(Format format, const Recipe& recipe) {
  Encoding encoding{format, find_dialect(recipe.dialect, recipe.where("output.dialect"))};
  const bool has_choice = format == Format::kInt4 || format == Format::kInt4Fp8;
  encoding.group_size = has_choice && recipe.group_size > 0 ? recipe.group_size : info(format).group_size;
  return encoding;
}

void decide_smoothing_vectors(const layers::ModelSpec& model, const Recipe& recipe, std::map<std::string, Decision>& decisions) {
  for (const auto& layer : model.layers)
    for (const int linear : output_linears(layer)) {
      const layers::LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
      Encoding& encoding = decisions.at(spec.module).encoding;
      encoding.pre_quant_scale = is_modelopt_int4(encoding) && !spec.is_stacked();
    }
  decide_stored_factors(model, recipe, decisions);
}

std::map<std::string, Decision> decide_formats(const layers::ModelSpec& model, const Recipe& recipe) {
  struct Candidate {
    const layers::LinearSpec* linear;
    const layers::LayerSpec* layer;  ///< nullptr: the head
  };
  std::vector<Candidate> linears;
  for (const auto& layer : model.layers)
    for (const auto& linear : layer.linears) linears.push_back({&linear, &layer});
  linears.push_back({&model.lm_head, nullptr});

  const Format base = find_format(recipe.format, recipe.where("quantization.format")).format;
  const std::vector<Pattern> ignore(recipe.ignore.begin(), recipe.ignore.end());
  std::vector<Pattern> rules;
  std::vector<Format> rule_formats;
  for (const Rule& rule : recipe.rules) {
    rules.emplace_back(rule.match);
    rule_formats.push_back(find_format(rule.format, rule.where).format);
  }
  std::map<std::string, Decision> decisions;
  std::vector<int64_t> used(rules.size(), 0), ignored(rules.size(), 0);
  for (const auto& [linear, layer] : linears) {
    Decision decision{encoding_of(base, recipe), recipe.preset.empty() ? "quantization.format" : "quantization.preset"};
    const std::string& name = linear->module;
    const auto pattern = std::find_if(ignore.begin(), ignore.end(), [&](const Pattern& p) { return p.ignores(name); });
    const bool is_ignored = pattern != ignore.end();
    for (size_t r = 0; r < rules.size(); ++r) {
      if (!rules[r].matches(name)) continue;
      (is_ignored ? ignored : used)[r] += 1;
      decision = {encoding_of(rule_formats[r], recipe), "rule " + std::to_string(r + 1) + ": " + rules[r].text()};
    }
    if (is_ignored) decision = {encoding_of(Format::kNone, recipe), "ignore: " + pattern->text(), true};
    // A tied head is the embedding under another name: servers read one tensor for both.
    if (!layer && model.tied && decision.encoding.is_quantized()) decision = {encoding_of(Format::kNone, recipe), "tied to the embedding"};
    check_linear(*linear, decision, layer);
    decisions[name] = std::move(decision);
  }
  for (size_t r = 0; r < recipe.rules.size(); ++r) {
    if (used[r] > 0) continue;
    if (ignored[r] > 0)
      throw user_error("rule '" + recipe.rules[r].match + "' matches only modules that quantization.ignore leaves out",
                       recipe.rules[r].where, "take them off quantization.ignore (its default is [lm_head]), or remove the rule");
    std::vector<std::string> names;
    for (const auto& candidate : linears) names.push_back(candidate.linear->module);
    const std::string near = nearest(recipe.rules[r].match, names);
    throw user_error("rule '" + recipe.rules[r].match + "' matches no linear of this model", recipe.rules[r].where,
                     near.empty() ? "module names look like " + linears.front().linear->module : "did you mean '" + near + "'?");
  }
  for (const auto& layer : model.layers) check_fused(layer, decisions);
  decide_smoothing_vectors(model, recipe, decisions);
  return decisions;
}

bool needs_calibration(const std::map<std::string, Decision>& decisions, const Recipe& recipe) {
  if (recipe.kv_cache != "none") return true;
  const bool quantizes =
      std::any_of(decisions.begin(), decisions.end(), [](const auto& entry) { return entry.second.encoding.is_quantized(); });
  if (quantizes && recipe.method != "minmax") return true;
  return std::any_of(decisions.begin(), decisions.end(), [](const auto& entry) { return has_input_scale(entry.second.encoding); });
}

}  // namespace ptq::recipes
