#include "recipes/recipe.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/core/error.h"
#include "recipes/formats.h"

namespace ptq::recipes {

namespace {

/// One mapping of the recipe while it is read: hands out values by key and, at its end, knows which keys nobody asked for.
class Section {
 public:
  Section(YAML::Node node, std::string path, const std::string& file, Recipe& recipe)
      : node_(std::move(node)), path_(std::move(path)), file_(file), recipe_(recipe) {
    if (node_.IsDefined() && !node_.IsNull() && !node_.IsMap()) throw user_error("'" + path_ + "' is not a mapping of keys", at(node_, ""));
  }

  Section section(const std::string& key) { return {take(key), dotted(key), file_, recipe_}; }

  void read(const std::string& key, std::string& value) {
    if (const YAML::Node node = take(key)) value = scalar<std::string>(node, key, "a text");
  }
  void read(const std::string& key, int64_t& value) {
    if (const YAML::Node node = take(key)) value = scalar<int64_t>(node, key, "an integer");
  }
  void read(const std::string& key, double& value) {
    if (const YAML::Node node = take(key)) value = scalar<double>(node, key, "a number");
  }
  void read(const std::string& key, bool& value) {
    if (const YAML::Node node = take(key)) value = scalar<bool>(node, key, "true or false");
  }
  void read(const std::string& key, std::vector<std::string>& value) {
    const YAML::Node node = take(key);
    if (!node) return;
    value.clear();
    if (node.IsScalar()) value.push_back(scalar<std::string>(node, key, "a text or a list of texts"));
    else if (node.IsSequence())
      for (const auto& item : node) value.push_back(scalar<std::string>(item, key, "a list of texts"));
    else
      throw user_error("'" + dotted(key) + "' is not a text or a list of texts", at(node, key));
  }
  void read_bytes(const std::string& key, int64_t& value) {
    std::string text;
    read(key, text);
    if (!text.empty()) value = parse_bytes(text, recipe_.where(dotted(key)));
  }
  void read_choice(const std::string& key, std::string& value, const std::vector<std::string>& choices) {
    read(key, value);
    if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
    std::string list;
    for (const auto& choice : choices) list += (list.empty() ? "" : ", ") + choice;
    throw user_error("unknown value '" + value + "'", recipe_.where(dotted(key)), "use one of: " + list);
  }
  void read_rules(const std::string& key, std::vector<Rule>& rules) {
    const YAML::Node node = take(key);
    if (!node) return;
    if (!node.IsSequence()) throw user_error("'" + dotted(key) + "' is not a list of rules", at(node, key));
    for (size_t i = 0; i < node.size(); ++i) {
      const std::string path = dotted(key) + "[" + std::to_string(i) + "]";
      Section section(node[i], path, file_, recipe_);
      Rule rule;
      rule.where = file_ + ":" + std::to_string(node[i].Mark().line + 1) + "  " + path;
      section.read("match", rule.match);
      section.read("format", rule.format);
      section.finish();
      if (rule.match.empty() || rule.format.empty())
        throw user_error("a rule needs match and format", rule.where, "write {match: \"*.self_attn.*\", format: fp8}");
      rules.push_back(std::move(rule));
    }
  }

  /// A key of the contract that this version only accepts with its default.
  template <class T>
  void only(const std::string& key, T fallback, const std::string& why) {
    T value = fallback;
    read(key, value);
    if (value != fallback) throw user_error("'" + dotted(key) + "' is not supported by this version: " + why, recipe_.where(dotted(key)));
  }
  /// A key of the contract that has no effect yet.
  void ignore(const std::string& key) { take(key); }

  /// Call last: throws for a key that nobody read.
  void finish() const {
    if (!node_.IsMap()) return;
    for (const auto& entry : node_) {
      const auto key = entry.first.as<std::string>();
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      const std::string near = nearest(key, known_);
      std::string all;
      for (const auto& name : known_) all += (all.empty() ? "" : ", ") + name;
      throw user_error("unknown key '" + key + "'" + (path_.empty() ? "" : " in " + path_), at(entry.first, key),
                       near.empty() ? "known keys here: " + all : "did you mean '" + near + "'?");
    }
  }

 private:
  std::string dotted(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  std::string at(const YAML::Node& node, const std::string& key) const {
    const int line = node.IsDefined() ? node.Mark().line + 1 : 0;
    return file_ + (line > 0 ? ":" + std::to_string(line) : "") + "  " + (key.empty() ? path_ : dotted(key));
  }
  YAML::Node take(const std::string& key) {
    known_.push_back(key);
    if (!node_.IsMap()) return YAML::Node(YAML::NodeType::Undefined);
    const YAML::Node node = static_cast<const YAML::Node&>(node_)[key];
    if (!node.IsDefined() || node.IsNull()) return YAML::Node(YAML::NodeType::Undefined);
    recipe_.lines.emplace_back(dotted(key), node.Mark().line + 1);
    return node;
  }
  template <class T>
  T scalar(const YAML::Node& node, const std::string& key, const char* what) const {
    try {
      return node.as<T>();
    } catch (const YAML::Exception&) {
      throw user_error("'" + dotted(key) + "' is not " + what, at(node, key));
    }
  }

  YAML::Node node_;
  std::string path_;
  const std::string& file_;
  Recipe& recipe_;
  std::vector<std::string> known_;
};

void apply_override(YAML::Node root, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw user_error("'" + text + "' is neither an option nor key=value", "command line", "write e.g. parallel.tensor=2");
  const std::string key = text.substr(0, equals);
  YAML::Node value;
  try {
    value = YAML::Load(text.substr(equals + 1));
  } catch (const YAML::Exception& error) {
    throw user_error("the value of '" + key + "' is not YAML: " + error.msg, "command line");
  }
  YAML::Node node = root;
  size_t begin = 0;
  for (size_t dot; (dot = key.find('.', begin)) != std::string::npos; begin = dot + 1) {
    node.reset(node[key.substr(begin, dot - begin)]);
    if (node.IsDefined() && !node.IsNull() && !node.IsMap()) throw user_error("'" + key + "': '" + key.substr(0, dot) + "' is not a mapping", "command line");
  }
  node[key.substr(begin)] = value;
}

void at_least(const Recipe& recipe, const std::string& key, int64_t value, int64_t least) {
  if (value < least) throw user_error("'" + key + "' is " + std::to_string(value) + ", less than " + std::to_string(least), recipe.where(key));
}

void read_quantization(Section quantization, Recipe& recipe) {
  bool has_format = false, has_method = false;
  quantization.read("preset", recipe.preset);
  std::string format, method;
  quantization.read("format", format);
  quantization.read("method", method);
  has_format = !format.empty();
  has_method = !method.empty();
  quantization.read_choice("kv_cache", recipe.kv_cache, {"none", "fp8", "nvfp4", "nvfp4_affine"});
  quantization.read("ignore", recipe.ignore);
  quantization.read_rules("rules", recipe.rules);
  quantization.ignore("group_size");
  quantization.read_choice("fp8_quotient", recipe.fp8_quotient, {"exact", "modelopt"});
  for (const char* later : {"smoothquant", "awq", "autoquantize"}) quantization.ignore(later);
  quantization.finish();

  if (!recipe.preset.empty() && (has_format || has_method))
    throw user_error("preset stands for a format and a method: give it alone, or both of them", recipe.where("quantization.preset"),
                     "remove quantization." + std::string(has_format ? "format" : "method"));
  if (!recipe.preset.empty()) {
    const Preset preset = find_preset(recipe.preset, recipe.where("quantization.preset"));
    recipe.format = preset.format;
    recipe.method = preset.method;
  } else {
    if (!has_format && recipe.kv_cache == "none" && recipe.rules.empty())
      throw user_error("nothing says what to quantize to", recipe.file + "  quantization", "write quantization: {preset: nvfp4} (or fp8, ...)");
    if (has_format) recipe.format = format;
    if (has_method) recipe.method = method;
  }
  find_format(recipe.format, recipe.where("quantization.format"));
  for (const Rule& rule : recipe.rules) find_format(rule.format, rule.where);
  if (recipe.method != "minmax")
    throw user_error("method '" + recipe.method + "' is not supported by this version", recipe.where("quantization.method"), "use minmax");
  if (recipe.kv_cache != "none" && recipe.kv_cache != "fp8")
    throw user_error("kv_cache '" + recipe.kv_cache + "' is not supported by this version", recipe.where("quantization.kv_cache"), "use fp8 or none");
}

}  // namespace

std::string Recipe::where(const std::string& key) const {
  for (const auto& [name, line] : lines)
    if (name == key) return file + (line > 0 ? ":" + std::to_string(line) : "") + "  " + key;
  return file + "  " + key;
}

Recipe parse_recipe(const std::string& text, const std::string& file, const std::vector<std::string>& overrides) {
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw user_error("the recipe is not YAML: " + error.msg, file + ":" + std::to_string(error.mark.line + 1));
  }
  if (root.IsNull()) root = YAML::Node(YAML::NodeType::Map);
  if (!root.IsMap()) throw user_error("the recipe is not a mapping of keys", file, "begin with model:, quantization: and output:");
  for (const auto& override_text : overrides) apply_override(root, override_text);

  Recipe recipe;
  recipe.file = file;
  Section top(root, "", recipe.file, recipe);

  Section model = top.section("model");
  model.read("path", recipe.model_path);
  model.only<std::string>("config", "", "only checkpoints that carry their config.json are read");
  model.finish();

  Section calibration = top.section("calibration");
  calibration.read("data", recipe.calibration_data);
  calibration.read("samples", recipe.samples);
  calibration.read("sequence_length", recipe.sequence_length);
  calibration.read("pack", recipe.pack);
  calibration.read("drop_short", recipe.drop_short);
  calibration.read("seed", recipe.seed);
  calibration.only<std::string>("reuse", "", "statistics are collected anew");
  calibration.only<bool>("keep_gram", false, "there are no Gram matrices to keep");
  calibration.finish();

  read_quantization(top.section("quantization"), recipe);
  top.ignore("moe");

  Section parallel = top.section("parallel");
  parallel.read("tensor", recipe.tensor);
  parallel.read("pipeline", recipe.pipeline);
  parallel.only<int64_t>("expert", 1, "the supported models have no experts");
  parallel.finish();

  top.read_choice("device", recipe.device, {"auto", "cpu", "cuda"});
  top.read_choice("compute", recipe.compute, {"bf16", "fp32"});
  Section memory = top.section("memory");
  memory.read_bytes("host", recipe.host_memory);
  memory.ignore("device");
  memory.finish();
  top.read("scratch", recipe.scratch);
  top.ignore("resume");

  Section output = top.section("output");
  output.read("path", recipe.output_path);
  output.read_choice("dialect", recipe.dialect, {"modelopt", "compressed-tensors", "deepseek-fp8"});
  output.read_choice("engine", recipe.engine, {"any", "vllm", "sglang", "tensorrt-llm"});
  output.read("overwrite", recipe.overwrite);
  output.read_bytes("max_shard_size", recipe.max_shard_size);
  output.read("verify", recipe.verify);
  output.read("report", recipe.report);
  output.finish();
  top.finish();

  if (recipe.model_path.empty()) throw user_error("'model.path' is missing", file + "  model.path", "name the checkpoint's folder");
  if (recipe.output_path.empty()) throw user_error("'output.path' is missing", file + "  output.path", "name the folder to write");
  while (recipe.output_path.size() > 1 && recipe.output_path.back() == '/') recipe.output_path.pop_back();
  at_least(recipe, "calibration.samples", recipe.samples, 1);
  at_least(recipe, "calibration.sequence_length", recipe.sequence_length, 1);
  at_least(recipe, "parallel.tensor", recipe.tensor, 1);
  at_least(recipe, "parallel.pipeline", recipe.pipeline, 1);
  at_least(recipe, "output.max_shard_size", recipe.max_shard_size, 1);
  if (recipe.device == "cuda")
    throw user_error("this build has no CUDA backend", recipe.where("device"), "use device: cpu, or build with ./dev build cuda");
  if (recipe.dialect != "modelopt")
    throw user_error("dialect '" + recipe.dialect + "' is not supported by this version", recipe.where("output.dialect"), "use modelopt");
  return recipe;
}

std::string to_yaml(const Recipe& recipe, bool all) {
  YAML::Emitter out;
  out << YAML::BeginMap;
  out << YAML::Key << "model" << YAML::Value << YAML::BeginMap << YAML::Key << "path" << YAML::Value << recipe.model_path << YAML::EndMap;
  out << YAML::Key << "calibration" << YAML::Value << YAML::BeginMap;
  out << YAML::Key << "data" << YAML::Value << YAML::Flow << recipe.calibration_data;
  out << YAML::Key << "samples" << YAML::Value << recipe.samples << YAML::Key << "sequence_length" << YAML::Value << recipe.sequence_length;
  out << YAML::Key << "pack" << YAML::Value << recipe.pack << YAML::Key << "drop_short" << YAML::Value << recipe.drop_short;
  out << YAML::Key << "seed" << YAML::Value << recipe.seed << YAML::EndMap;
  out << YAML::Key << "quantization" << YAML::Value << YAML::BeginMap;
  out << YAML::Key << "format" << YAML::Value << recipe.format << YAML::Key << "method" << YAML::Value << recipe.method;
  out << YAML::Key << "kv_cache" << YAML::Value << recipe.kv_cache << YAML::Key << "ignore" << YAML::Value << YAML::Flow << recipe.ignore;
  out << YAML::Key << "rules" << YAML::Value << YAML::BeginSeq;
  for (const Rule& rule : recipe.rules)
    out << YAML::Flow << YAML::BeginMap << YAML::Key << "match" << YAML::Value << YAML::DoubleQuoted << rule.match << YAML::Key << "format"
        << YAML::Value << rule.format << YAML::EndMap;
  out << YAML::EndSeq << YAML::Key << "fp8_quotient" << YAML::Value << recipe.fp8_quotient << YAML::EndMap;
  out << YAML::Key << "compute" << YAML::Value << recipe.compute;
  if (all) {
    out << YAML::Key << "parallel" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "tensor" << YAML::Value << recipe.tensor
        << YAML::Key << "pipeline" << YAML::Value << recipe.pipeline << YAML::EndMap;
    out << YAML::Key << "device" << YAML::Value << recipe.device;
    out << YAML::Key << "memory" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "host" << YAML::Value << recipe.host_memory
        << YAML::EndMap;
    out << YAML::Key << "scratch" << YAML::Value << recipe.scratch;
  }
  out << YAML::Key << "output" << YAML::Value << YAML::BeginMap << YAML::Key << "path" << YAML::Value << recipe.output_path;
  out << YAML::Key << "dialect" << YAML::Value << recipe.dialect << YAML::Key << "engine" << YAML::Value << recipe.engine;
  out << YAML::Key << "max_shard_size" << YAML::Value << recipe.max_shard_size;
  if (all) out << YAML::Key << "overwrite" << YAML::Value << recipe.overwrite << YAML::Key << "verify" << YAML::Value << recipe.verify;
  out << YAML::EndMap << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

int64_t parse_bytes(const std::string& text, const std::string& where) {
  static const std::map<std::string, double> units{{"", 1},       {"B", 1},
                                                   {"KB", 1e3},   {"MB", 1e6},
                                                   {"GB", 1e9},   {"TB", 1e12},
                                                   {"KiB", 0x1p10}, {"MiB", 0x1p20},
                                                   {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  size_t used = 0;
  double number = 0;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
    throw user_error("'" + text + "' is not a size", where, "write e.g. 16GiB or 5GB");
  }
  while (used < text.size() && text[used] == ' ') ++used;
  const auto unit = units.find(text.substr(used));
  if (unit == units.end() || !(number >= 0) || number * unit->second > 0x1p62)
    throw user_error("'" + text + "' is not a size", where, "write e.g. 16GiB or 5GB");
  return static_cast<int64_t>(number * unit->second);
}

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = word.size() / 2 + 1;
  for (const auto& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t replaced = diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace ptq::recipes
