#include "recipes/section.h"

#include <algorithm>
#include <set>
#include <utility>

namespace ptq::recipes {

namespace {

template <class T>
T scalar(const YAML::Node& node, const std::string& key, const std::string& where, const char* what) {
  try {
    return node.as<T>();
  } catch (const YAML::Exception&) {
    throw user_error("'" + key + "' is not " + what, where);
  }
}

}  // namespace

Section::Section(const YAML::Node& node, std::string path, Recipe& recipe) : node_(node), path_(std::move(path)), recipe_(recipe) {
  if (node_.IsDefined() && !node_.IsNull() && !node_.IsMap())
    throw user_error("'" + path_ + "' is not a mapping of keys", recipe_.where(path_));
}

void Section::read(const std::string& key, std::string& value) {
  if (const YAML::Node node = take(key)) value = scalar<std::string>(node, dotted(key), recipe_.where(dotted(key)), "a text");
}
void Section::read(const std::string& key, int64_t& value) {
  if (const YAML::Node node = take(key)) value = scalar<int64_t>(node, dotted(key), recipe_.where(dotted(key)), "an integer");
}
void Section::read(const std::string& key, double& value) {
  if (const YAML::Node node = take(key)) value = scalar<double>(node, dotted(key), recipe_.where(dotted(key)), "a number");
}
void Section::read(const std::string& key, bool& value) {
  if (const YAML::Node node = take(key)) value = scalar<bool>(node, dotted(key), recipe_.where(dotted(key)), "true or false");
}

void Section::read(const std::string& key, std::vector<std::string>& value) {
  const YAML::Node node = take(key);
  if (!node) return;
  const std::string where = recipe_.where(dotted(key));
  value.clear();
  if (!node.IsScalar() && !node.IsSequence()) throw user_error("'" + dotted(key) + "' is not a text or a list of texts", where);
  if (node.IsScalar()) value.push_back(scalar<std::string>(node, dotted(key), where, "a text or a list of texts"));
  for (const auto& item : node) value.push_back(scalar<std::string>(item, dotted(key), where, "a list of texts"));
}

void Section::read_bytes(const std::string& key, int64_t& value) {
  std::string text;
  read(key, text);
  if (!text.empty()) value = parse_bytes(text, recipe_.where(dotted(key)));
}

void Section::read_choice(const std::string& key, std::string& value, const std::vector<std::string>& choices) {
  read(key, value);
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  std::string list;
  for (const auto& choice : choices) list += (list.empty() ? "" : ", ") + choice;
  throw user_error("unknown value '" + value + "'", recipe_.where(dotted(key)), "use one of: " + list);
}

void Section::read_rules(const std::string& key, std::vector<Rule>& rules) {
  const YAML::Node node = take(key);
  if (!node) return;
  if (!node.IsSequence()) throw user_error("'" + dotted(key) + "' is not a list of rules", recipe_.where(dotted(key)));
  for (size_t i = 0; i < node.size(); ++i) {
    const std::string path = dotted(key) + "[" + std::to_string(i) + "]";
    Rule rule;
    rule.where = at(node[i], key) + "[" + std::to_string(i) + "]";
    Section section(node[i], path, recipe_);
    section.read("match", rule.match);
    section.read("format", rule.format);
    section.finish();
    if (rule.match.empty() || rule.format.empty())
      throw user_error("a rule needs match and format", rule.where, "write {match: \"*.self_attn.*\", format: fp8}");
    rules.push_back(std::move(rule));
  }
}

void Section::expect(std::vector<std::string> keys) {
  known_ = std::move(keys);
  finish();
}

void Section::finish() const {
  if (!node_.IsMap()) return;
  std::set<std::string> seen;
  for (const auto& entry : node_) {
    if (!entry.first.IsScalar()) throw user_error("a key is not a text", at(entry.first, ""));
    const auto key = entry.first.as<std::string>();
    if (!seen.insert(key).second) throw user_error("key '" + dotted(key) + "' is written twice", at(entry.first, key), "keep one of them");
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    const std::string near = nearest(key, known_);
    std::string all;
    for (const auto& name : known_) all += (all.empty() ? "" : ", ") + name;
    throw user_error("unknown key '" + key + "'" + (path_.empty() ? "" : " in " + path_), at(entry.first, key),
                     near.empty() ? "known keys here: " + all : "did you mean '" + near + "'?");
  }
}

std::string Section::at(const YAML::Node& node, const std::string& key) const {
  const std::string path = key.empty() ? path_ : dotted(key);
  if (recipe_.is_overridden(path)) return "command line  " + path;
  const int line = node.IsDefined() ? node.Mark().line + 1 : 0;
  return recipe_.file + (line > 0 ? ":" + std::to_string(line) : "") + "  " + path;
}

void Section::refuse(const std::string& key, const std::string& why) const {
  throw user_error("'" + dotted(key) + "' is not supported by this version: " + why, recipe_.where(dotted(key)));
}

YAML::Node Section::take(const std::string& key) {
  if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.push_back(key);
  if (!node_.IsMap()) return YAML::Node(YAML::NodeType::Undefined);
  const YAML::Node node = static_cast<const YAML::Node&>(node_)[key];
  if (!node.IsDefined() || node.IsNull()) return YAML::Node(YAML::NodeType::Undefined);
  recipe_.lines.emplace_back(dotted(key), node.Mark().line + 1);
  return node;
}

}  // namespace ptq::recipes
