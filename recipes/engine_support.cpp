#include "recipes/engine_support.h"

#include <algorithm>
#include <array>
#include <set>

#include "kernels/core/error.h"

namespace ptq::recipes {

namespace {

enum class Engine { kVllm, kSglang, kTensorRt };
constexpr std::array<Engine, 3> kEngines{Engine::kVllm, Engine::kSglang, Engine::kTensorRt};
constexpr std::array<const char*, 3> kNames{"vllm", "sglang", "tensorrt-llm"};

/// Where a format is met.
enum class Where { kAnywhere, kExperts, kPartialBlocks, kSmoothed, kSmoothedExperts };

/// An engine that does not load a format. What is not listed loads.
struct Refusal {
  Dialect dialect;
  Format format;
  Engine engine;
  Where where;
  const char* reason;
};

constexpr Dialect kMo = Dialect::kModelOpt, kCt = Dialect::kCompressedTensors;
constexpr Engine kV = Engine::kVllm, kS = Engine::kSglang, kT = Engine::kTensorRt;
constexpr Where kAny = Where::kAnywhere;

const std::vector<Refusal> kRefusals{
    {kMo, Format::kFp8Blocks, kV, Where::kExperts, "reads ModelOpt's fp8_pb_wo in linears alone, not in experts"},
    {kMo, Format::kFp8Blocks, kV, Where::kPartialBlocks, "reads ModelOpt's fp8_pb_wo only where 128 divides the input widths"},
    {kMo, Format::kFp8Blocks, kS, kAny, "rejects quant_algo fp8_pb_wo"},
    {kMo, Format::kFp8Channels, kV, Where::kExperts, "reads FP8_PER_CHANNEL_PER_TOKEN in linears alone, not in experts"},
    {kMo, Format::kFp8Channels, kS, kAny, "rejects quant_algo FP8_PER_CHANNEL_PER_TOKEN"},
    {kMo, Format::kNvfp4, kV, Where::kSmoothed, "rejects quant_algo NVFP4_AWQ"},
    {kMo, Format::kNvfp4, kS, Where::kSmoothedExperts, "reads NVFP4_AWQ in dense models alone"},
    {kMo, Format::kNvfp4WeightOnly, kV, Where::kSmoothed, "reads no pre_quant_scale beside W4A16_NVFP4"},
    {kMo, Format::kNvfp4WeightOnly, kS, Where::kSmoothed, "reads no pre_quant_scale beside W4A16_NVFP4"},
    {kMo, Format::kNvfp4WeightOnly, kT, Where::kSmoothed, "reads no pre_quant_scale beside W4A16_NVFP4"},
    {kMo, Format::kInt8, kV, kAny, "rejects quant_algo W8A8_SQ_PER_CHANNEL"},
    {kMo, Format::kInt8, kS, kAny, "rejects quant_algo W8A8_SQ_PER_CHANNEL"},
    {kMo, Format::kInt8, kT, kAny, "has no linear for W8A8_SQ_PER_CHANNEL"},
    {kMo, Format::kInt8WeightOnly, kV, kAny, "rejects quant_algo W8A16"},
    {kMo, Format::kInt8WeightOnly, kS, kAny, "rejects quant_algo W8A16"},
    {kMo, Format::kInt4, kV, kAny, "rejects quant_algo W4A16_AWQ"},
    {kMo, Format::kInt4, kS, kAny, "rejects quant_algo W4A16_AWQ"},
    {kMo, Format::kInt4Fp8, kV, kAny, "rejects quant_algo W4A8_AWQ"},
    {kMo, Format::kInt4Fp8, kS, kAny, "rejects quant_algo W4A8_AWQ"},
    {kMo, Format::kMxfp8, kS, kAny, "looks for the scales of MXFP8 under another name"},
    {kMo, Format::kMxfp4, kV, kAny, "rejects quant_algo mxfp4"},
    {kMo, Format::kMxfp4, kS, kAny, "rejects quant_algo mxfp4"},
    {kMo, Format::kMxfp4, kT, kAny, "reads no mxfp4 of ModelOpt's"},

    {kCt, Format::kFp8, kT, kAny, "reads FP8 of compressed-tensors by channel and token or in blocks alone"},
    {kCt, Format::kInt8, kT, kAny, "takes INT8 of compressed-tensors for FP8"},
    {kCt, Format::kInt8WeightOnly, kT, kAny, "takes INT8 of compressed-tensors for FP8"},
    {kCt, Format::kInt4, kT, kAny, "reads no INT4 of compressed-tensors"},
    {kCt, Format::kInt4Fp8, kS, kAny, "reads no INT4 of compressed-tensors with FP8 inputs"},
    {kCt, Format::kInt4Fp8, kT, kAny, "reads no INT4 of compressed-tensors"},
    {kCt, Format::kNvfp4WeightOnly, kS, kAny, "reads NVFP4 of compressed-tensors with quantized inputs alone"},
    {kCt, Format::kNvfp4WeightOnly, kT, kAny, "reads NVFP4 of compressed-tensors with quantized inputs alone"},
    {kCt, Format::kMxfp8, kS, kAny, "reads no MXFP8 of compressed-tensors"},
    {kCt, Format::kMxfp8, kT, kAny, "reads no MXFP8 of compressed-tensors"},
    {kCt, Format::kMxfp4, kS, kAny, "reads no MXFP4 of compressed-tensors"},
    {kCt, Format::kMxfp4, kT, kAny, "reads MXFP4 of compressed-tensors with unquantized inputs alone"},
};

/// The same for KV caches, in ModelOpt's dialect; the others have FP8 alone, which all engines that load them read. vLLM and SGLang take
/// NVFP4_AFFINE for a cache in the model's dtype.
struct KvRefusal {
  const char* algo;
  Engine engine;
  const char* reason;
};
const std::vector<KvRefusal> kKvRefusals{{"NVFP4_AFFINE", kT, "knows no KV cache algorithm NVFP4_AFFINE"},
                                         {kMixedPrecision, kS, "reads one KV cache format for all layers"},
                                         {kMixedPrecision, kT, "reads one KV cache format for all layers"}};

/// What vLLM's releases do not have yet: it is proposed in vllm-project/vllm pull 56116.
constexpr const char* kLayerwiseKv = "a vLLM build with layer-wise KV support (vllm-project/vllm pull 56116)";

bool is_met(const FormatUse& use, Where where) {
  switch (where) {
    case Where::kAnywhere:
      return true;
    case Where::kExperts:
      return !use.containers.empty();
    case Where::kPartialBlocks:
      return use.has_partial_blocks;
    case Where::kSmoothed:
      return use.encoding.pre_quant_scale;
    case Where::kSmoothedExperts:
      return use.encoding.pre_quant_scale && !use.containers.empty();
  }
  return false;
}

/// Why the engine does not load it; "" when it does.
std::string refusal_of(Engine engine, const ExportMetadata& metadata) {
  for (const FormatUse& use : metadata.formats)
    for (const Refusal& refusal : kRefusals)
      if (refusal.engine == engine && refusal.dialect == metadata.dialect && refusal.format == use.encoding.format &&
          is_met(use, refusal.where))
        return refusal.reason;
  const bool is_nvfp4 = std::any_of(metadata.formats.begin(), metadata.formats.end(), [](const FormatUse& use) {
    return use.encoding.format == Format::kNvfp4 || use.encoding.format == Format::kNvfp4WeightOnly;
  });
  if (engine == kS && metadata.dialect == kMo && metadata.formats.size() > 1 && !is_nvfp4)
    return "needs at least one NVFP4 layer in a mixed checkpoint";
  if (metadata.kv_cache_algo.empty()) return "";
  if (metadata.formats.empty() && (engine != kT || metadata.dialect != kMo))
    return "rejects a quantized KV cache without quantized weights";
  for (const KvRefusal& refusal : kKvRefusals)
    if (refusal.engine == engine && metadata.kv_cache_algo == refusal.algo) return refusal.reason;
  return "";
}

std::string sglang_flags(const ExportMetadata& metadata) {
  if (metadata.is_plain() || metadata.dialect != kMo) return "";
  const bool is_eight = metadata.is_mixed() || metadata.quant_algo == "FP8";
  return std::string(" --quantization ") + (is_eight ? "modelopt" : "modelopt_fp4") +
         (metadata.kv_cache_algo == "NVFP4" ? " --kv-cache-dtype fp4_e2m1" : "");
}

/// `metadata` as it would be in another dialect, or with one format everywhere. Nothing where there is no such layout.
std::optional<ExportMetadata> changed(const ExportMetadata& metadata, Dialect dialect, std::optional<Format> format) {
  ExportMetadata other = metadata;
  other.dialect = dialect;
  for (FormatUse& use : other.formats) {
    use.encoding.dialect = dialect;
    if (format) use.encoding.format = *format;
    if (use.in_stacked_experts && (dialect != kMo || use.encoding.format == Format::kFp8Blocks)) return std::nullopt;
    if (dialect == Dialect::kDeepseekFp8 && use.encoding.format != Format::kFp8Blocks) return std::nullopt;
  }
  if (format) other.formats.resize(std::min<size_t>(other.formats.size(), 1));
  if (dialect == Dialect::kDeepseekFp8 && !metadata.kv_cache_algo.empty()) return std::nullopt;
  if (dialect == kCt && !metadata.kv_cache_algo.empty() && metadata.kv_cache_algo != "FP8") return std::nullopt;
  return other;
}

/// Runs all routed experts of a layer as one kernel, which has one format?
bool fuses_experts(Engine engine) {
  switch (engine) {
    case kV:
    case kS:
    case kT:
      return true;
  }
  return true;
}

bool is_asked_for(const Recipe& recipe, size_t engine) { return recipe.engine == "any" || recipe.engine == kNames[engine]; }

bool loads_anywhere(const Recipe& recipe, const std::optional<ExportMetadata>& metadata) {
  if (!metadata) return false;
  for (size_t e = 0; e < kEngines.size(); ++e)
    if (is_asked_for(recipe, e) && refusal_of(kEngines[e], *metadata).empty()) return true;
  return false;
}

/// The least change to the recipe after which the engine loads the export.
std::string nearest_that_loads(const Recipe& recipe, const ExportMetadata& metadata) {
  ExportMetadata folded = metadata;
  for (FormatUse& use : folded.formats) use.encoding.pre_quant_scale = false;
  if (loads_anywhere(recipe, folded)) return "use quantization.awq.fold: all";
  for (const Dialect dialect : {kMo, kCt, Dialect::kDeepseekFp8})
    if (dialect != metadata.dialect && loads_anywhere(recipe, changed(metadata, dialect, std::nullopt)))
      return "use output.dialect: " + dialect_name(dialect);
  const bool is_four = !metadata.formats.empty() && std::all_of(metadata.formats.begin(), metadata.formats.end(),
                                                                [](const FormatUse& use) { return info(use.encoding.format).bits < 6; });
  const std::vector<Format> order = is_four ? std::vector<Format>{Format::kNvfp4, Format::kFp8} : std::vector<Format>{Format::kFp8};
  for (const Dialect dialect : {metadata.dialect, kMo})
    for (const Format format : order)
      if (!metadata.formats.empty() && loads_anywhere(recipe, changed(metadata, dialect, format)))
        return "use quantization.preset: " + info(format).name + (dialect == metadata.dialect ? "" : " and output.dialect: modelopt");
  return metadata.kv_cache_algo.empty() ? "choose another format or engine" : "choose another format, kv_cache or engine";
}

/// Of every engine that is asked for.
std::string reasons_of(const Recipe& recipe, const ExportMetadata& metadata) {
  std::string reasons;
  for (size_t e = 0; e < kEngines.size(); ++e)
    if (is_asked_for(recipe, e))
      reasons += (reasons.empty() ? "" : "; ") + std::string(kNames[e]) + " " + refusal_of(kEngines[e], metadata);
  return reasons;
}

/// Where a candidate is met, as far as the recipe tells.
FormatUse use_of(const Recipe& recipe, const std::string& candidate) {
  Recipe alone = recipe;
  const Preset& preset = find_preset(candidate, recipe.where("quantization.autoquantize.formats"));
  alone.format = preset.format;
  alone.method = preset.method;
  FormatUse use;
  use.encoding = encoding_of(find_format(preset.format, "").format, alone);
  const bool stores_factors = preset.method == "smoothquant" || (preset.method == "awq" && alone.fold() != "all");
  use.encoding.pre_quant_scale = use.encoding.dialect == kMo && (stores_factors || is_modelopt_int4(use.encoding));
  return use;
}

}  // namespace

std::vector<EngineSupport> engine_support(const ExportMetadata& metadata, const std::string& output_path) {
  const std::array<std::string, 3> commands{"vllm serve " + output_path,
                                            "python3 -m sglang.launch_server --model-path " + output_path + sglang_flags(metadata),
                                            "trtllm-serve " + output_path};
  std::vector<EngineSupport> engines;
  for (size_t e = 0; e < kEngines.size(); ++e) {
    const std::string reason = refusal_of(kEngines[e], metadata);
    const bool needs_layers = kEngines[e] == kV && metadata.has_mixed_kv();
    engines.push_back({kNames[e], reason.empty(), reason, commands[e], needs_layers ? kLayerwiseKv : ""});
  }
  return engines;
}

void check_engine(const Recipe& recipe, const ExportMetadata& metadata) {
  if (loads_anywhere(recipe, metadata)) return;
  throw user_error("no engine asked for loads such a checkpoint: " + reasons_of(recipe, metadata), recipe.where("output.engine"),
                   nearest_that_loads(recipe, metadata));
}

void check_candidates(const Recipe& recipe) {
  bool some_engine_splits = recipe.autoquantize.expert_granularity == "layer";
  for (size_t e = 0; e < kEngines.size(); ++e)
    some_engine_splits = some_engine_splits || (is_asked_for(recipe, e) && !fuses_experts(kEngines[e]));
  if (!some_engine_splits)
    throw user_error(std::string(recipe.engine == "any" ? "every engine" : recipe.engine) +
                         " runs all routed experts of a layer as one kernel, which has one format",
                     recipe.where("quantization.autoquantize.expert_granularity"), "use expert_granularity: layer");
  const std::string where = recipe.where("quantization.autoquantize.formats");
  ExportMetadata together;
  together.dialect = find_dialect(recipe.dialect, recipe.where("output.dialect"));
  std::set<Format> formats;
  for (const std::string& name : recipe.autoquantize.formats) {
    const FormatUse use = use_of(recipe, name);
    if (!use.encoding.is_quantized()) continue;
    ExportMetadata alone;
    alone.dialect = together.dialect;
    alone.formats = {use};
    if (!loads_anywhere(recipe, alone)) {
      const std::string fix = nearest_that_loads(recipe, alone);
      throw user_error("no engine asked for loads the candidate " + name + ": " + reasons_of(recipe, alone), where,
                       "take it off the list" + (fix.starts_with("use output.dialect") ? ", or " + fix : ""));
    }
    if (formats.insert(use.encoding.format).second) together.formats.push_back(use);
  }
  if (!loads_anywhere(recipe, together))
    throw user_error("no engine asked for loads all candidates side by side: " + reasons_of(recipe, together), where,
                     "take candidates off the list, or name an output.engine to see what it refuses");
  if (recipe.autoquantize.kv_cache.formats.empty()) return;
  together.kv_cache_algo = kMixedPrecision;
  if (!loads_anywhere(recipe, together))
    throw user_error("no engine asked for loads a KV cache whose format differs by layer: " + reasons_of(recipe, together),
                     recipe.where("quantization.autoquantize.kv_cache"),
                     "use quantization.kv_cache, which is for all layers, or output.engine: vllm");
}

}  // namespace ptq::recipes
