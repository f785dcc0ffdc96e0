#include "recipes/recipe.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "kernels/core/error.h"
#include "recipes/engine_support.h"
#include "recipes/formats.h"
#include "recipes/range.h"
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

/// An alpha is a number from 0 to 1 or the word auto.
void read_smoothquant(Section smoothquant, Recipe& recipe) {
  std::string alpha;
  smoothquant.read("alpha", alpha);
  smoothquant.finish();
  if (alpha.empty()) return;
  recipe.smoothquant.alpha_auto = alpha == "auto";
  if (recipe.smoothquant.alpha_auto) return;
  const char* end = alpha.data() + alpha.size();
  const auto [stop, fault] = std::from_chars(alpha.data(), end, recipe.smoothquant.alpha);
  if (fault != std::errc() || stop != end || !(recipe.smoothquant.alpha >= 0 && recipe.smoothquant.alpha <= 1))
    throw user_error("'quantization.smoothquant.alpha' is neither a number from 0 to 1 nor auto",
                     recipe.where("quantization.smoothquant.alpha"), "1.0 is ModelOpt's");
}

void read_awq(Section awq, Recipe& recipe) {
  awq.read("grid", recipe.awq.grid);
  awq.read("clip", recipe.awq.clip);
  awq.read("error_feedback", recipe.awq.error_feedback);
  if (awq.has("fold")) awq.read_choice("fold", recipe.awq.fold, {"all", "modelopt", "none"});
  awq.finish();
  at_least(recipe, "quantization.awq.grid", recipe.awq.grid, 1);
}

void read_range(Section range, Recipe& recipe) {
  range.read_choice("weights", recipe.range.weights, {"amax", "mse"});
  range.read_choice("activations", recipe.range.activations, {"amax", "percentile", "mse"});
  range.read("percentile", recipe.range.percentile);
  range.finish();
  if (!(recipe.range.percentile > 50 && recipe.range.percentile <= 100))
    throw user_error("'quantization.range.percentile' is not above 50 and at most 100", recipe.where("quantization.range.percentile"),
                     "99.99 leaves out one value of ten thousand");
}

void expect_bits(const Recipe& recipe, const std::string& key, double bits, const std::string& example) {
  if (!(bits > 0 && std::isfinite(bits))) throw user_error("'" + key + "' is not a positive number", recipe.where(key), example);
}

void read_kv_cache(Section section, Recipe& recipe) {
  KvCacheRules& rules = recipe.autoquantize.kv_cache;
  rules.formats = {"fp8", "nvfp4"};
  section.read("formats", rules.formats);
  section.read("effective_bits", rules.effective_bits);
  section.finish();
  const std::string where = recipe.where("quantization.autoquantize.kv_cache.formats");
  const std::vector<std::string> known{"fp8", "nvfp4", "none"};
  for (const std::string& name : rules.formats) {
    if (std::count(known.begin(), known.end(), name) == 0)
      throw user_error("'" + name + "' is no format of KV caches to choose from", where, "use some of: fp8, nvfp4, none");
    if (std::count(rules.formats.begin(), rules.formats.end(), name) > 1)
      throw user_error("KV cache format '" + name + "' is there twice", where, "keep one");
  }
  if (rules.formats.size() < 2)
    throw user_error("there is nothing to choose from: fewer than two KV cache formats", where,
                     "use some of: fp8, nvfp4, none; one for all layers is quantization.kv_cache");
  expect_bits(recipe, "quantization.autoquantize.kv_cache.effective_bits", rules.effective_bits, "6.0 is between nvfp4 (4.5) and fp8 (8)");
}

void read_autoquantize(Section section, Recipe& recipe) {
  AutoQuantizeRules& rules = recipe.autoquantize;
  section.read("effective_bits", rules.effective_bits);
  section.read("formats", rules.formats);
  section.read("score_samples", rules.score_samples);
  section.read("kl_checks", rules.kl_checks);
  section.read_choice("cost", rules.cost, {"weights", "active_moe"});
  section.read_choice("expert_granularity", rules.expert_granularity, {"layer", "expert"});
  section.read("scores", rules.scores);
  if (section.has("kv_cache")) read_kv_cache(section.section("kv_cache"), recipe);
  section.finish();
  expect_bits(recipe, "quantization.autoquantize.effective_bits", rules.effective_bits, "4.8 is between nvfp4 (4.5) and fp8 (8)");
  at_least(recipe, "quantization.autoquantize.score_samples", rules.score_samples, 1);
  at_least(recipe, "quantization.autoquantize.kl_checks", rules.kl_checks, 1);
}

/// The presets that can be candidates, as a list for users.
std::string candidate_names(Dialect dialect) {
  std::string names;
  for (const Preset& preset : all_presets()) {
    const Format format = find_format(preset.format, "").format;
    const bool is_held = dialect != Dialect::kDeepseekFp8 || format == Format::kFp8Blocks || format == Format::kNone;
    if (preset.method != "autoquantize" && is_held) names += (names.empty() ? "" : ", ") + preset.name;
  }
  return names;
}

void check_candidate_list(const Recipe& recipe) {
  const std::string where = recipe.where("quantization.autoquantize.formats");
  const Dialect dialect = find_dialect(recipe.dialect, recipe.where("output.dialect"));
  const std::string all = "use some of: " + candidate_names(dialect);
  const std::vector<std::string>& names = recipe.autoquantize.formats;
  for (const std::string& name : names) {
    const auto preset = std::find_if(all_presets().begin(), all_presets().end(), [&](const Preset& p) { return p.name == name; });
    if (preset == all_presets().end()) throw user_error("candidate '" + name + "' is no preset", where, all);
    if (preset->method == "autoquantize") throw user_error("'" + name + "' cannot be a candidate of itself", where, all);
    if (std::count(names.begin(), names.end(), name) > 1) throw user_error("candidate '" + name + "' is there twice", where, "keep one");
    const Format format = find_format(preset->format, where).format;
    if (dialect == Dialect::kDeepseekFp8 && format != Format::kFp8Blocks && format != Format::kNone)
      throw user_error("dialect deepseek-fp8 holds fp8_pb_wo alone, not the candidate " + name, where,
                       all + ", or output.dialect: modelopt");
  }
  if (std::all_of(names.begin(), names.end(), [](const std::string& name) { return name == "none"; }))
    throw user_error("there is no candidate but none", where, all);
}

bool has_four_bits(Format format) {
  return format == Format::kInt4 || format == Format::kInt4Fp8 || format == Format::kNvfp4 || format == Format::kNvfp4WeightOnly;
}

/// Formats of the recipe, that of all modules first; with autoquantize none and those of the candidates.
std::vector<Format> formats_of(const Recipe& recipe) {
  if (recipe.method == "autoquantize") {
    std::vector<Format> formats{Format::kNone};
    const std::string where = recipe.where("quantization.autoquantize.formats");
    for (const std::string& name : recipe.autoquantize.formats)
      formats.push_back(find_format(find_preset(name, where).format, where).format);
    return formats;
  }
  std::vector<Format> formats{find_format(recipe.format, recipe.where("quantization.format")).format};
  for (const Rule& rule : recipe.rules) formats.push_back(find_format(rule.format, rule.where).format);
  return formats;
}

/// Ranges are searched by min-max calibration; smoothing has searches of its own.
void check_range(const Recipe& recipe) {
  if (recipe.range.weights == "amax" && recipe.range.activations == "amax") return;
  if (recipe.method != "minmax")
    throw user_error("quantization.range belongs to method minmax, but the method is " + recipe.method, recipe.where("quantization.range"),
                     "remove it: " + recipe.method + " searches ranges by itself");
  if (recipe.range.activations != "amax" && !recipe.reuse.empty())
    throw user_error("the statistics of an earlier run hold no counts of magnitudes", recipe.where("quantization.range.activations"),
                     "use activations: amax, or remove calibration.reuse");
  const std::vector<Format> formats = formats_of(recipe);
  if (recipe.range.weights != "amax" && std::none_of(formats.begin(), formats.end(), has_row_range))
    throw user_error(recipe.format + " has no scales of rows or groups whose range could be searched",
                     recipe.where("quantization.range.weights"), "use weights: amax, or a format such as int4, int8, fp8_pc_pt or nvfp4");
}

/// What a search among formats leaves no room for.
void check_autoquantize(const Recipe& recipe) {
  const auto refuse = [&](const std::string& key, const std::string& why) {
    throw user_error("quantization." + key + " and method autoquantize do not go together: " + why, recipe.where("quantization." + key),
                     "remove it, or name a method");
  };
  if (recipe.format != "none")
    throw user_error("autoquantize chooses the format of every linear, but one is given: " + recipe.format,
                     recipe.where("quantization.format"), "remove it, and name candidates in quantization.autoquantize.formats");
  if (!recipe.rules.empty())
    throw user_error("autoquantize chooses the format of every linear, which leaves nothing to rules", recipe.rules[0].where,
                     "remove quantization.rules; what must stay as it is can be named in quantization.ignore");
  if (recipe.range.weights != "amax" || recipe.range.activations != "amax") refuse("range", "candidates search ranges as their presets do");
  if (!recipe.autoquantize.kv_cache.formats.empty() && recipe.kv_cache != "none")
    throw user_error("quantization.kv_cache and quantization.autoquantize.kv_cache do not go together: the one is for all layers",
                     recipe.where("quantization.kv_cache"), "remove one of them");
  if (!recipe.awq.fold.empty() && recipe.awq.fold != "all") refuse("awq.fold", "candidates share their folds, all the way");
  if (!recipe.reuse.empty())
    throw user_error("calibration.reuse and method autoquantize do not go together: scores need a forward pass",
                     recipe.where("calibration.reuse"), "name calibration.data");
}

void check_method(const Recipe& recipe) {
  const std::string where = recipe.where("quantization.method");
  if (recipe.method == "autoquantize") {
    check_candidate_list(recipe);
    check_autoquantize(recipe);
    return;
  }
  if (recipe.method != "minmax" && recipe.method != "smoothquant" && recipe.method != "awq")
    throw user_error("method '" + recipe.method + "' is unknown", where, "use one of: minmax, smoothquant, awq, autoquantize");
  const std::vector<Format> formats = formats_of(recipe);
  const bool has_int8 = std::count(formats.begin(), formats.end(), Format::kInt8) > 0;
  const bool has_four = std::any_of(formats.begin(), formats.end(), has_four_bits);
  if ((recipe.method == "smoothquant" && !has_int8) || (recipe.method == "awq" && !has_four))
    throw user_error("method " + recipe.method +
                         (recipe.method == "awq" ? " searches scales of 4-bit weights" : " smooths the inputs of int8") +
                         ", but the format is " + recipe.format,
                     where,
                     has_four   ? "use method: awq, or minmax"
                     : has_int8 ? "use method: smoothquant, or minmax"
                                : "use method: minmax (awq is for int4, w4a8, nvfp4 and w4a16_nvfp4, smoothquant for int8)");
}

void check_groups(const Recipe& recipe) {
  const std::string where = recipe.where("quantization.group_size");
  if (recipe.group_size == 0) return;
  const std::vector<Format> formats = formats_of(recipe);
  const auto has_choice = [](Format format) { return format == Format::kInt4 || format == Format::kInt4Fp8; };
  if (std::none_of(formats.begin(), formats.end(), has_choice)) {
    const int64_t own = info(formats[0]).group_size;
    if (recipe.group_size == own) return;
    throw user_error(recipe.format + (own > 0 ? " always groups " + std::to_string(own) + " inputs" : " has no groups"), where,
                     "remove quantization.group_size");
  }
  if (recipe.group_size < 8 || recipe.group_size % 8 != 0)
    throw user_error("'quantization.group_size' is " + std::to_string(recipe.group_size) + ", not a positive multiple of 8", where,
                     "use 128 (the default), 64 or 32");
}

/// What a dialect cannot say, whatever the model.
void check_dialect(const Recipe& recipe) {
  const Dialect dialect = find_dialect(recipe.dialect, recipe.where("output.dialect"));
  if (dialect == Dialect::kModelOpt) return;
  if ((recipe.uses_method("awq") || recipe.uses_method("smoothquant")) && recipe.fold() != "all")
    throw user_error(
        "dialect " + recipe.dialect + " cannot hold smoothing factors beside a weight, as awq.fold: " + recipe.fold() + " stores them",
        recipe.where("quantization.awq.fold"), "use awq.fold: all, or output.dialect: modelopt");
  if (dialect == Dialect::kDeepseekFp8)
    for (const Format format : formats_of(recipe))
      if (format != Format::kFp8Blocks && format != Format::kNone)
        throw user_error("dialect deepseek-fp8 holds fp8_pb_wo alone, not " + info(format).name, recipe.where("output.dialect"),
                         "use quantization.preset: fp8_pb_wo, or output.dialect: modelopt or compressed-tensors");
  const bool has_word = recipe.kv_cache == "none" || (dialect == Dialect::kCompressedTensors && recipe.kv_cache == "fp8");
  if (!has_word)
    throw user_error("dialect " + recipe.dialect + " has no words for kv_cache: " + recipe.kv_cache, recipe.where("quantization.kv_cache"),
                     dialect == Dialect::kCompressedTensors ? "use kv_cache: fp8 or none, or output.dialect: modelopt"
                                                            : "use kv_cache: none, or output.dialect: modelopt");
  if (recipe.method == "autoquantize" && !recipe.autoquantize.kv_cache.formats.empty())
    throw user_error("dialect " + recipe.dialect + " has no words for a KV cache whose format differs by layer",
                     recipe.where("quantization.autoquantize.kv_cache"), "remove it, or use output.dialect: modelopt");
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
  quantization.read("group_size", recipe.group_size);
  read_range(quantization.section("range"), recipe);
  quantization.read_choice("fp8_quotient", recipe.fp8_quotient, {"exact", "modelopt"});
  read_smoothquant(quantization.section("smoothquant"), recipe);
  read_awq(quantization.section("awq"), recipe);
  read_autoquantize(quantization.section("autoquantize"), recipe);
  quantization.finish();

  if (!recipe.preset.empty() && (has_format || has_method))
    throw user_error("preset stands for a format and a method: give it alone, or both of them", recipe.where("quantization.preset"),
                     "remove quantization." + std::string(has_format ? "format" : "method"));
  if (!recipe.preset.empty()) {
    const Preset& preset = find_preset(recipe.preset, recipe.where("quantization.preset"));
    recipe.format = preset.format;
    recipe.method = preset.method;
  } else {
    if (!has_format && method != "autoquantize" && recipe.kv_cache == "none" && recipe.rules.empty())
      throw user_error("nothing says what to quantize to", recipe.file + "  quantization",
                       "write quantization: {preset: nvfp4} (or fp8, ...)");
    if (has_format) recipe.format = format;
    if (has_method) recipe.method = method;
  }
}

}  // namespace

bool Recipe::uses_method(const std::string& name) const {
  if (method != "autoquantize") return method == name;
  return std::any_of(autoquantize.formats.begin(), autoquantize.formats.end(),
                     [&](const std::string& candidate) { return find_preset(candidate, "").method == name; });
}

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
  model.read("config", recipe.model_config);
  model.finish();

  Section calibration = top.section("calibration");
  calibration.read("data", recipe.calibration_data);
  calibration.read("samples", recipe.samples);
  calibration.read("sequence_length", recipe.sequence_length);
  calibration.read("pack", recipe.pack);
  calibration.read("drop_short", recipe.drop_short);
  calibration.read("seed", recipe.seed);
  calibration.read("reuse", recipe.reuse);
  calibration.read("keep_gram", recipe.keep_gram);
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
  Section resume = top.section("resume");
  resume.read_choice("hidden_states", recipe.hidden_states, {"every_window", "recompute"});
  resume.finish();

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
  check_method(recipe);
  check_range(recipe);
  check_groups(recipe);
  check_dialect(recipe);
  if (recipe.method == "autoquantize") check_candidates(recipe);
  return recipe;
}

}  // namespace ptq::recipes
