#pragma once
// The words of the checkpoint: hf_quant_config.json and config.json's quantization_config in ModelOpt's layout, made from one object so
// that they cannot disagree, and read back.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "layers/model_spec.h"
#include "recipes/decisions.h"

namespace ptq::recipes {

using checkpoint::Json;

struct ExportMetadata {
  std::string quant_algo;     ///< "" when only the KV cache is quantized
  std::string kv_cache_algo;  ///< "" for none
  int64_t group_size = 0;
  std::vector<std::string> excluded;  ///< uniform formats: exclude_modules
  /// MIXED_PRECISION: in module order, one key for all routed experts of a layer.
  std::vector<std::pair<std::string, Format>> quantized_layers;
};

/// `outside`: the modules that own a matrix and are no part of the spec (multi-token prediction, a vision tower): servers must be told that
/// they are not quantized, as they are told of routers and the embedding.
ExportMetadata describe_export(const layers::ModelSpec& model, const std::map<std::string, Decision>& decisions,
                               const std::string& kv_cache, const std::vector<std::string>& outside);

/// hf_quant_config.json.
Json hf_quant_config(const ExportMetadata& metadata);
/// The source's config.json with the quantization_config of this export in place of any other; every other key as it was.
Json quantized_config(const Json& source_config, const ExportMetadata& metadata);
/// Where hf_quant_config.json and config.json's quantization_config contradict each other or the format, a sentence each.
std::vector<std::string> metadata_faults(const Json& file, const Json& words);
/// generation_config.json as servers accept it: do_sample is true where top_k or top_p is set.
Json generation_config(const Json& source);

/// Engines that load this export, of vllm, sglang, tensorrt-llm, with the reason for each that does not.
struct EngineSupport {
  std::string engine;
  bool loads = false;
  std::string reason;   ///< why not
  std::string command;  ///< how to serve it
};
std::vector<EngineSupport> engine_support(const ExportMetadata& metadata, const std::string& output_path);
/// Throws a user Error when the recipe's engine cannot load this export, or, for "any", when none can.
void check_engine(const Recipe& recipe, const ExportMetadata& metadata);

}  // namespace ptq::recipes
