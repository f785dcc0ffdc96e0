#include "recipes/recipe.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "kernels/core/error.h"
#include "recipes/formats.h"
#include "recipes/section.h"

namespace ptq::recipes {

namespace {

/// Sets one "dotted.key=value" and returns its key.
std::string apply_override(const YAML::Node& root, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw user_error("'" + text + "' is neither an option nor key=value", "command line", "write e.g. parallel.tensor=2");
  std::string key = text.substr(0, equals);
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
    if (node.IsDefined() && !node.IsNull() && !node.IsMap())
      throw user_error("'" + key + "': '" + key.substr(0, dot) + "' is not a mapping", "command line");
  }
  node[key.substr(begin)] = value;
  return key;
}

void at_least(const Recipe& recipe, const std::string& key, int64_t value, int64_t least) {
  if (value < least)
    throw user_error("'" + key + "' is " + std::to_string(value) + ", less than " + std::to_string(least), recipe.where(key));
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
  int64_t group_size = 0;
  quantization.read("group_size", group_size);
  quantization.read_choice("fp8_quotient", recipe.fp8_quotient, {"exact", "modelopt"});
  for (const char* later : {"smoothquant", "awq", "autoquantize"}) quantization.never(later, "it belongs to a method of a later one");
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
      throw user_error("nothing says what to quantize to", recipe.file + "  quantization",
                       "write quantization: {preset: nvfp4} (or fp8, ...)");
    if (has_format) recipe.format = format;
    if (has_method) recipe.method = method;
  }
  find_format(recipe.format, recipe.where("quantization.format"));
  for (const Rule& rule : recipe.rules) find_format(rule.format, rule.where);
  const int64_t own_groups = find_format(recipe.format, "").group_size;
  if (group_size != 0 && group_size != own_groups)
    throw user_error(recipe.format + (own_groups > 0 ? " always groups " + std::to_string(own_groups) + " inputs" : " has no groups"),
                     recipe.where("quantization.group_size"), "remove quantization.group_size");
  if (recipe.method != "minmax")
    throw user_error("method '" + recipe.method + "' is not supported by this version", recipe.where("quantization.method"), "use minmax");
  if (recipe.kv_cache != "none" && recipe.kv_cache != "fp8")
    throw user_error("kv_cache '" + recipe.kv_cache + "' is not supported by this version", recipe.where("quantization.kv_cache"),
                     "use fp8 or none");
}

}  // namespace

bool Recipe::is_overridden(const std::string& key) const {
  return std::any_of(overridden.begin(), overridden.end(), [&](const std::string& set) {
    return key.compare(0, set.size(), set) == 0 && (key.size() == set.size() || key[set.size()] == '.' || key[set.size()] == '[');
  });
}

std::string Recipe::where(const std::string& key) const {
  if (is_overridden(key)) return "command line  " + key;
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
  Recipe recipe;
  recipe.file = file;
  for (const auto& override_text : overrides) recipe.overridden.push_back(apply_override(root, override_text));
  Section top(root, "", recipe);

  top.expect({"model", "calibration", "quantization", "moe", "parallel", "device", "compute", "memory", "scratch", "resume", "output"});
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
  Section moe = top.section("moe");
  moe.read("min_tokens_per_expert", recipe.moe.min_tokens_per_expert);
  moe.read_choice("unseen", recipe.moe.unseen, {"peer_max", "fail"});
  moe.read("fail_below_coverage", recipe.moe.fail_below_coverage);
  moe.read("force_route", recipe.moe.force_route);
  moe.finish();

  Section parallel = top.section("parallel");
  parallel.read("tensor", recipe.tensor);
  parallel.read("pipeline", recipe.pipeline);
  parallel.read("expert", recipe.expert);
  parallel.finish();

  top.read_choice("device", recipe.device, {"auto", "cpu", "cuda"});
  top.read_choice("compute", recipe.compute, {"bf16", "fp32"});
  Section memory = top.section("memory");
  memory.read_bytes("host", recipe.host_memory);
  int64_t device_memory = 0;  // no device but the CPU yet
  memory.read_bytes("device", device_memory);
  memory.finish();
  top.read("scratch", recipe.scratch);
  top.never("resume", "a run that was cut off starts over");

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
  at_least(recipe, "parallel.expert", recipe.expert, 1);
  at_least(recipe, "moe.min_tokens_per_expert", recipe.moe.min_tokens_per_expert, 0);
  if (!(recipe.moe.fail_below_coverage >= 0 && recipe.moe.fail_below_coverage <= 1))
    throw user_error("'moe.fail_below_coverage' is not a fraction from 0 to 1", recipe.where("moe.fail_below_coverage"),
                     "0.95 asks that 95 % of the experts see moe.min_tokens_per_expert tokens");
  at_least(recipe, "output.max_shard_size", recipe.max_shard_size, 1);
  if (recipe.device == "cuda")
    throw user_error("this build has no CUDA backend", recipe.where("device"), "use device: cpu, or build with ./dev build cuda");
  if (recipe.dialect != "modelopt")
    throw user_error("dialect '" + recipe.dialect + "' is not supported by this version", recipe.where("output.dialect"), "use modelopt");
  return recipe;
}

}  // namespace ptq::recipes
