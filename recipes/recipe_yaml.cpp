// A recipe as text: written back as YAML, sizes read, misspelt words matched.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <utility>

#include "kernels/core/error.h"
#include "recipes/recipe.h"

namespace ptq::recipes {

namespace {

/// The fewest digits that read back as the same number, on every machine: the text is part of a fingerprint.
std::string shortest(double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), end.ptr};
}

}  // namespace

std::string to_yaml(const Recipe& recipe, bool all) {
  YAML::Emitter out;
  out << YAML::BeginMap;
  out << YAML::Key << "model" << YAML::Value << YAML::BeginMap << YAML::Key << "path" << YAML::Value << recipe.model_path;
  if (!recipe.model_config.empty()) out << YAML::Key << "config" << YAML::Value << recipe.model_config;
  out << YAML::EndMap;
  out << YAML::Key << "calibration" << YAML::Value << YAML::BeginMap;
  out << YAML::Key << "data" << YAML::Value << YAML::Flow << recipe.calibration_data;
  out << YAML::Key << "samples" << YAML::Value << recipe.samples << YAML::Key << "sequence_length" << YAML::Value << recipe.sequence_length;
  out << YAML::Key << "pack" << YAML::Value << recipe.pack << YAML::Key << "drop_short" << YAML::Value << recipe.drop_short;
  out << YAML::Key << "seed" << YAML::Value << recipe.seed;
  if (!recipe.reuse.empty()) out << YAML::Key << "reuse" << YAML::Value << recipe.reuse;
  out << YAML::Key << "keep_gram" << YAML::Value << recipe.keep_gram << YAML::EndMap;
  out << YAML::Key << "quantization" << YAML::Value << YAML::BeginMap;
  out << YAML::Key << "format" << YAML::Value << recipe.format << YAML::Key << "method" << YAML::Value << recipe.method;
  out << YAML::Key << "kv_cache" << YAML::Value << recipe.kv_cache << YAML::Key << "ignore" << YAML::Value << YAML::Flow << recipe.ignore;
  out << YAML::Key << "rules" << YAML::Value << YAML::BeginSeq;
  for (const Rule& rule : recipe.rules)
    out << YAML::Flow << YAML::BeginMap << YAML::Key << "match" << YAML::Value << YAML::DoubleQuoted << rule.match << YAML::Key << "format"
        << YAML::Value << rule.format << YAML::EndMap;
  out << YAML::EndSeq;
  if (recipe.group_size > 0) out << YAML::Key << "group_size" << YAML::Value << recipe.group_size;
  out << YAML::Key << "range" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "weights" << YAML::Value
      << recipe.range.weights << YAML::Key << "activations" << YAML::Value << recipe.range.activations << YAML::Key << "percentile"
      << YAML::Value << shortest(recipe.range.percentile) << YAML::EndMap;
  out << YAML::Key << "fp8_quotient" << YAML::Value << recipe.fp8_quotient;
  if (recipe.uses_method("smoothquant"))
    out << YAML::Key << "smoothquant" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "alpha" << YAML::Value
        << (recipe.smoothquant.alpha_auto ? "auto" : shortest(recipe.smoothquant.alpha)) << YAML::EndMap;
  if (recipe.uses_method("awq")) {
    out << YAML::Key << "awq" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "grid" << YAML::Value << recipe.awq.grid
        << YAML::Key << "clip" << YAML::Value << recipe.awq.clip << YAML::Key << "error_feedback" << YAML::Value
        << recipe.awq.error_feedback;
    if (!recipe.awq.fold.empty()) out << YAML::Key << "fold" << YAML::Value << recipe.awq.fold;
    out << YAML::EndMap;
  }
  if (recipe.method == "autoquantize") {
    const AutoQuantizeRules& rules = recipe.autoquantize;
    out << YAML::Key << "autoquantize" << YAML::Value << YAML::BeginMap << YAML::Key << "effective_bits" << YAML::Value
        << shortest(rules.effective_bits) << YAML::Key << "formats" << YAML::Value << YAML::Flow << rules.formats << YAML::Key
        << "score_samples" << YAML::Value << rules.score_samples << YAML::Key << "kl_checks" << YAML::Value << rules.kl_checks << YAML::Key
        << "cost" << YAML::Value << rules.cost << YAML::Key << "expert_granularity" << YAML::Value << rules.expert_granularity;
    if (!rules.scores.empty()) out << YAML::Key << "scores" << YAML::Value << rules.scores;
    if (!rules.kv_cache.formats.empty())
      out << YAML::Key << "kv_cache" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "formats" << YAML::Value
          << rules.kv_cache.formats << YAML::Key << "effective_bits" << YAML::Value << shortest(rules.kv_cache.effective_bits)
          << YAML::EndMap;
    out << YAML::EndMap;
  }
  out << YAML::EndMap;
  out << YAML::Key << "moe" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "min_tokens_per_expert" << YAML::Value
      << recipe.moe.min_tokens_per_expert << YAML::Key << "unseen" << YAML::Value << recipe.moe.unseen << YAML::Key << "fail_below_coverage"
      << YAML::Value << shortest(recipe.moe.fail_below_coverage) << YAML::Key << "force_route" << YAML::Value << recipe.moe.force_route
      << YAML::EndMap;
  out << YAML::Key << "compute" << YAML::Value << recipe.compute;
  if (all) {
    out << YAML::Key << "parallel" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "tensor" << YAML::Value << recipe.tensor
        << YAML::Key << "pipeline" << YAML::Value << recipe.pipeline << YAML::Key << "expert" << YAML::Value << recipe.expert
        << YAML::EndMap;
    out << YAML::Key << "device" << YAML::Value << recipe.device;
    out << YAML::Key << "memory" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "host" << YAML::Value << recipe.host_memory
        << YAML::EndMap;
    out << YAML::Key << "scratch" << YAML::Value << recipe.scratch;
    out << YAML::Key << "resume" << YAML::Value << YAML::Flow << YAML::BeginMap << YAML::Key << "hidden_states" << YAML::Value
        << recipe.hidden_states << YAML::EndMap;
  }
  out << YAML::Key << "output" << YAML::Value << YAML::BeginMap << YAML::Key << "path" << YAML::Value << recipe.output_path;
  out << YAML::Key << "dialect" << YAML::Value << recipe.dialect << YAML::Key << "engine" << YAML::Value << recipe.engine;
  out << YAML::Key << "max_shard_size" << YAML::Value << recipe.max_shard_size;
  if (all)
    out << YAML::Key << "overwrite" << YAML::Value << recipe.overwrite << YAML::Key << "verify" << YAML::Value << recipe.verify << YAML::Key
        << "report" << YAML::Value << recipe.report;
  out << YAML::EndMap << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

int64_t parse_bytes(const std::string& text, const std::string& where) {
  static const std::map<std::string, double> units{{"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
                                                   {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
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
