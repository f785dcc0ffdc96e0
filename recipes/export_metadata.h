#pragma once
// What an export is, in words: made from the decisions once, so that the JSON files made from it cannot disagree. The files of ModelOpt's
// dialect are here, those of the others in other_dialects.h.

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "layers/model_spec.h"
#include "recipes/decisions.h"
#include "recipes/kv_cache.h"

namespace ptq::recipes {

using checkpoint::Json;

/// One of the export's formats, and where it is met: engines load some formats only in some places.
struct FormatUse {
  Encoding encoding;                 ///< pre_quant_scale: of any linear
  bool in_stacked_experts = false;   ///< in one tensor for all experts
  bool has_partial_blocks = false;   ///< FP8 blocks: some input width is no multiple of 128
  std::vector<std::string> modules;  ///< in model order; all routed experts of a layer are one
  std::set<std::string> containers;  ///< those of `modules` that are a layer's routed experts, stacked or not
};

/// ModelOpt's name for what differs by layer.
constexpr const char* kMixedPrecision = "MIXED_PRECISION";

struct ExportMetadata {
  Dialect dialect = Dialect::kModelOpt;
  std::string quant_algo;          ///< ModelOpt's name; "" when only the KV cache is quantized, MIXED_PRECISION with several formats
  std::string kv_cache_algo;       ///< "" for none, MIXED_PRECISION where it differs by layer
  std::vector<FormatUse> formats;  ///< in order of first appearance
  /// Modules left alone. ModelOpt, uniform formats: exclude_modules. Other dialects: full names, "re:..." for a layer's routed experts.
  std::vector<std::string> excluded;
  /// MIXED_PRECISION: in module order, one key for all routed experts of a layer.
  std::vector<std::pair<std::string, Encoding>> quantized_layers;
  /// MIXED_PRECISION of the KV cache: attention modules whose cache is quantized, in model order, and ModelOpt's name of its format.
  std::vector<std::pair<std::string, std::string>> kv_cache_layers;

  bool has_mixed_kv() const { return kv_cache_algo == kMixedPrecision; }
  /// Are formats told layer by layer? ModelOpt has a mixed KV cache beside such words only.
  bool is_mixed() const { return formats.size() > 1 || (formats.size() == 1 && has_mixed_kv()); }
  bool is_plain() const { return formats.empty() && kv_cache_algo.empty(); }
};

/// `outside`: the modules that own a matrix and are no part of the spec (multi-token prediction, a vision tower): servers must be told that
/// they are not quantized, as they are told of routers and the embedding.
ExportMetadata describe_export(const layers::ModelSpec& model, const std::map<std::string, Decision>& decisions, const KvFormats& kv_cache,
                               Dialect dialect, const std::vector<std::string>& outside);

/// hf_quant_config.json; nothing in the dialects that have none, and for plain models.
std::optional<Json> hf_quant_config(const ExportMetadata& metadata);
/// The source's config.json with the quantization_config of this export in place of any other; every other key as it was.
Json quantized_config(const Json& source_config, const ExportMetadata& metadata);
/// Where hf_quant_config.json and config.json's quantization_config contradict each other or the format, a sentence each.
std::vector<std::string> metadata_faults(const Json& file, const Json& words);
/// generation_config.json as servers accept it: do_sample is true where top_k or top_p is set.
Json generation_config(const Json& source);

}  // namespace ptq::recipes
