#pragma once
// The recipe: every key a user may write, read from YAML with the file, line and key of what is wrong. No file but the recipe is read.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ptq::recipes {

struct Rule {
  std::string match;   ///< glob over module names, or re:regex
  std::string format;  ///< a number format, or none
  std::string where;   ///< "recipe.yaml:12 quantization.rules[0]"
};

/// The recipe's word on mixture-of-experts layers.
struct MoeRules {
  int64_t min_tokens_per_expert = 64;
  std::string unseen = "peer_max";   ///< for experts below the minimum: peer_max | fail
  double fail_below_coverage = 0.0;  ///< least fraction of experts that reach the minimum
  bool force_route = false;          ///< send tokens to every expert in a statistics-only pass, besides those it is routed
};

struct Recipe {
  std::string file;

  std::string model_path;

  std::vector<std::string> calibration_data;
  int64_t samples = 512;
  int64_t sequence_length = 512;
  bool pack = true;
  bool drop_short = false;
  int64_t seed = 0;

  std::string preset;  ///< "" when spelled out
  std::string format = "none";
  std::string method = "minmax";
  std::string kv_cache = "none";
  std::vector<std::string> ignore{"lm_head"};
  std::vector<Rule> rules;
  std::string fp8_quotient = "exact";

  MoeRules moe;
  int64_t tensor = 1, pipeline = 1, expert = 1;
  std::string device = "auto";
  std::string compute = "bf16";
  int64_t host_memory = 0;  ///< bytes a rank may use; 0: from the machine
  std::string scratch;      ///< "" : inside the work folder

  std::string output_path;
  std::string dialect = "modelopt";
  std::string engine = "any";
  bool overwrite = false;
  int64_t max_shard_size = 5'000'000'000;
  bool verify = true;
  bool report = true;

  /// Where a key was written, for errors: "recipe.yaml:14  quantization.format" or "command line  quantization.format".
  std::string where(const std::string& key) const;
  bool is_overridden(const std::string& key) const;
  std::vector<std::pair<std::string, int>> lines;  ///< dotted key -> line, for keys that were written
  std::vector<std::string> overridden;             ///< dotted keys set on the command line
};

/// Reads a recipe's text. `overrides` are "dotted.key=value", values YAML. Throws a user Error for anything that is not a recipe: YAML
/// syntax, unknown keys (with the nearest known one), wrong types, impossible or not yet supported values.
Recipe parse_recipe(const std::string& text, const std::string& file, const std::vector<std::string>& overrides);

/// The recipe as resolved, every key with its value, as YAML: what the output keeps. Two recipes that ask for the same output give the
/// same text; parallel, memory, scratch and device are in it only with `all`.
std::string to_yaml(const Recipe& recipe, bool all);

/// "16GiB", "5GB", "100000" -> bytes. Throws a user Error with `where`.
int64_t parse_bytes(const std::string& text, const std::string& where);
/// The candidate nearest to `word` by edit distance; "" if none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace ptq::recipes
