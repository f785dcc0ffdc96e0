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

/// quantization.smoothquant: channel maxima of inputs move into the weights, max|x|^alpha / max|w|^(1 - alpha).
struct SmoothQuantRules {
  double alpha = 1.0;
  bool alpha_auto = false;
};

/// quantization.awq.
struct AwqRules {
  int64_t grid = 20;  ///< strengths tried
  bool clip = true;
  bool error_feedback = true;
  std::string fold;  ///< all | modelopt | none; "": all, but modelopt for engine tensorrt-llm
  // Not for recipes to say: AutoQuantize's candidates share their folds.
  bool smooth = true;          ///< false: scales and codes alone are searched
  bool powers_of_two = false;  ///< of all factors, so that folding them rounds nothing
};

/// quantization.range: see recipes/range.h.
struct RangeRules {
  std::string weights = "amax";      ///< amax | mse: of every group, row or block that has a scale
  std::string activations = "amax";  ///< amax | percentile | mse: of inputs with one static scale
  double percentile = 99.99;         ///< of magnitudes, that the range covers
};

/// quantization.autoquantize.kv_cache: a format for every layer's KV cache, within a budget of bits.
struct KvCacheRules {
  std::vector<std::string> formats;  ///< fp8, nvfp4, none; empty: quantization.kv_cache is that of all layers
  double effective_bits = 6.0;       ///< per cached number, scales included
};

/// quantization.autoquantize: a format for every group of linears, within a budget of bits.
struct AutoQuantizeRules {
  double effective_bits = 4.8;                           ///< stored bits per weight that all groups may have together
  std::vector<std::string> formats{"nvfp4_awq", "fp8"};  ///< presets; `none` is a candidate in any case
  int64_t score_samples = 128;
  int64_t kl_checks = 3;                     ///< best mixes whose KL to the original is measured
  std::string cost = "weights";              ///< weights | active_moe: routed experts count by the share of them that a token visits
  std::string expert_granularity = "layer";  ///< layer | expert: what of the routed experts has one format
  std::string scores;                        ///< scores.h5 of an earlier run; "": none
  KvCacheRules kv_cache;
};

struct Recipe {
  std::string file;

  std::string model_path;
  std::string model_config;  ///< folder with config.json and tokenizer, where the checkpoint carries none

  std::vector<std::string> calibration_data;
  int64_t samples = 512;
  int64_t sequence_length = 512;
  bool pack = true;
  bool drop_short = false;
  int64_t seed = 0;
  std::string reuse;       ///< calibration.h5 of an earlier run instead of a forward pass; "": none
  bool keep_gram = false;  ///< Gram matrices are kept in this run's calibration.h5

  std::string preset;  ///< "" when spelled out
  std::string format = "none";
  std::string method = "minmax";  ///< minmax | smoothquant | awq | autoquantize
  std::string kv_cache = "none";
  std::vector<std::string> ignore{"lm_head"};
  std::vector<Rule> rules;
  int64_t group_size = 0;  ///< of INT4; 0: the format's own
  std::string fp8_quotient = "exact";
  RangeRules range;
  SmoothQuantRules smoothquant;
  AwqRules awq;
  AutoQuantizeRules autoquantize;

  MoeRules moe;
  int64_t tensor = 1, pipeline = 1, expert = 1;
  std::string device = "auto";
  std::string compute = "bf16";
  int64_t host_memory = 0;                     ///< bytes a rank may use; 0: from the machine
  std::string scratch;                         ///< "" : inside the work folder
  std::string hidden_states = "every_window";  ///< of a stopped run: kept after every_window, or recompute

  std::string output_path;
  std::string dialect = "modelopt";
  std::string engine = "any";
  bool overwrite = false;
  int64_t max_shard_size = 5'000'000'000;
  bool verify = true;
  bool report = true;

  /// Is it the method, or that of one of autoquantize's candidates?
  bool uses_method(const std::string& name) const;
  /// What becomes of smoothing factors: all | modelopt | none. By default TensorRT-LLM gets them beside the weights where it reads them.
  std::string fold() const {
    if (!awq.fold.empty()) return awq.fold;
    return engine == "tensorrt-llm" && dialect == "modelopt" && format != "w4a16_nvfp4" ? "modelopt" : "all";
  }
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
