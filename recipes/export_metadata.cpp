#include "recipes/export_metadata.h"

#include <algorithm>
#include <set>

#include "recipes/version.h"

namespace ptq::recipes {

namespace {

/// Readers look at producer.name; the version says which of ModelOpt's layouts this is. Our own name goes into an extra key.
Json producer() { return {{"name", "modelopt"}, {"version", "0.47.0"}, {"generator", kProgram}}; }

Json layer_words(Format format) {
  Json words{{"quant_algo", info(format).quant_algo}};
  if (info(format).group_size > 0) words["group_size"] = info(format).group_size;
  return words;
}

Json kv_scheme() { return {{"dynamic", false}, {"num_bits", 8}, {"type", "float"}}; }

/// One entry of config_groups.
Json config_group(Format format, const std::vector<std::string>& targets) {
  Json side{{"dynamic", false}, {"num_bits", format == Format::kFp8 ? 8 : 4}, {"type", "float"}};
  if (info(format).group_size > 0) side["group_size"] = info(format).group_size;
  Json group;
  if (info(format).quantizes_activations) group["input_activations"] = side;
  group["weights"] = side;
  group["targets"] = targets;
  return group;
}

}  // namespace

std::vector<std::string> summarize_excluded(const std::vector<std::string>& unquantized, const std::vector<std::string>& quantized) {
  const std::set<std::string> taken(quantized.begin(), quantized.end());
  const auto prefix_of_taken = [&](const std::string& prefix) {
    const auto at = taken.lower_bound(prefix);
    return at != taken.end() && at->compare(0, prefix.size(), prefix) == 0;
  };
  std::set<std::string> patterns;
  for (const std::string& name : unquantized) {
    std::string chosen = name;
    for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
      const std::string prefix = name.substr(0, dot);
      if (!prefix_of_taken(prefix)) {
        chosen = prefix + "*";
        break;
      }
      if (!taken.count(prefix) && !prefix_of_taken(prefix + ".")) {
        chosen = prefix + ".*";
        break;
      }
    }
    patterns.insert(chosen);
  }
  return {patterns.begin(), patterns.end()};
}

ExportMetadata describe_export(const layers::ModelSpec& model, const std::map<std::string, Decision>& decisions,
                               const std::string& kv_cache) {
  ExportMetadata metadata;
  metadata.kv_cache_algo = kv_cache == "fp8" ? "FP8" : "";
  std::vector<std::string> quantized, unquantized;
  std::set<Format> formats;
  const auto add = [&](const layers::LinearSpec& linear) {
    const Format format = decisions.at(linear.module).format;
    if (format == Format::kNone) {
      unquantized.push_back(linear.module);
      return;
    }
    formats.insert(format);
    quantized.push_back(linear.module);
    metadata.quantized_layers.emplace_back(linear.module, format);
  };
  for (const auto& layer : model.layers)
    for (const auto& linear : layer.linears) add(linear);
  add(model.lm_head);
  unquantized.push_back(model.embedding.substr(0, model.embedding.rfind('.')));

  if (formats.size() > 1) {
    metadata.quant_algo = "MIXED_PRECISION";
    return metadata;
  }
  metadata.quantized_layers.clear();
  if (formats.empty()) return metadata;
  metadata.quant_algo = info(*formats.begin()).quant_algo;
  metadata.group_size = info(*formats.begin()).group_size;
  metadata.excluded = summarize_excluded(unquantized, quantized);
  return metadata;
}

Json hf_quant_config(const ExportMetadata& metadata) {
  const auto word = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
  Json quantization{{"quant_algo", word(metadata.quant_algo)}, {"kv_cache_quant_algo", word(metadata.kv_cache_algo)}};
  if (metadata.quant_algo == "MIXED_PRECISION" || metadata.quant_algo.empty()) {
    Json layers = Json::object();
    for (const auto& [module, format] : metadata.quantized_layers) layers[module] = layer_words(format);
    quantization["quantized_layers"] = layers;
  } else {
    if (metadata.group_size > 0) quantization["group_size"] = metadata.group_size;
    quantization["exclude_modules"] = metadata.excluded;
  }
  return {{"producer", producer()}, {"quantization", quantization}};
}

Json quantized_config(const Json& source_config, const ExportMetadata& metadata) {
  Json config = source_config;
  config.erase("quantization_config");
  if (metadata.quant_algo.empty() && metadata.kv_cache_algo.empty()) return config;
  Json words = Json::object();
  if (metadata.quant_algo == "MIXED_PRECISION") {
    std::vector<Format> order;
    std::map<Format, std::vector<std::string>> targets;
    Json layers = Json::object();
    for (const auto& [module, format] : metadata.quantized_layers) {
      if (!targets.count(format)) order.push_back(format);
      targets[format].push_back(module);
      layers[module] = layer_words(format);
    }
    Json groups = Json::object();
    for (size_t i = 0; i < order.size(); ++i) {
      std::sort(targets[order[i]].begin(), targets[order[i]].end());
      groups["group_" + std::to_string(i)] = config_group(order[i], targets[order[i]]);
    }
    words["config_groups"] = groups;
    words["quantized_layers"] = layers;
    words["ignore"] = Json::array();
  } else {
    for (const Format format : {Format::kFp8, Format::kNvfp4, Format::kNvfp4WeightOnly})
      if (info(format).quant_algo == metadata.quant_algo) words["config_groups"]["group_0"] = config_group(format, {"Linear"});
    words["ignore"] = metadata.excluded;
  }
  words["quant_algo"] = metadata.quant_algo.empty() ? Json(nullptr) : Json(metadata.quant_algo);
  // Not in ModelOpt's own file; without it TensorRT-LLM warns that the two files disagree.
  if (metadata.group_size > 0) words["group_size"] = metadata.group_size;
  if (!metadata.kv_cache_algo.empty()) words["kv_cache_scheme"] = kv_scheme();
  words["producer"] = producer();
  words["quant_method"] = "modelopt";
  config["quantization_config"] = words;
  return config;
}

Json generation_config(const Json& source) {
  Json config = source;
  const auto has_value = [&](const char* key) { return config.contains(key) && !config.at(key).is_null(); };
  if (has_value("top_k") || has_value("top_p")) config["do_sample"] = true;
  return config;
}

std::vector<EngineSupport> engine_support(const ExportMetadata& metadata, const std::string& output_path) {
  const bool nothing = metadata.quant_algo.empty();
  const std::string no_algo = nothing && !metadata.kv_cache_algo.empty() ? "rejects a quantized KV cache without quantized weights" : "";
  const bool has_nvfp4 = std::any_of(metadata.quantized_layers.begin(), metadata.quantized_layers.end(),
                                     [](const auto& layer) { return info(layer.second).group_size > 0; });
  std::string sglang = no_algo;
  if (metadata.quant_algo == "MIXED_PRECISION" && !has_nvfp4) sglang = "needs at least one NVFP4 layer in a mixed checkpoint";
  const std::string flag = nothing                                                                    ? ""
                           : metadata.quant_algo == "FP8" || metadata.quant_algo == "MIXED_PRECISION" ? " --quantization modelopt"
                                                                                                      : " --quantization modelopt_fp4";
  return {{"vllm", no_algo.empty(), no_algo, "vllm serve " + output_path},
          {"sglang", sglang.empty(), sglang, "python3 -m sglang.launch_server --model-path " + output_path + flag},
          {"tensorrt-llm", true, "", "trtllm-serve " + output_path}};
}

void check_engine(const Recipe& recipe, const ExportMetadata& metadata) {
  std::string reasons;
  for (const EngineSupport& engine : engine_support(metadata, recipe.output_path)) {
    if (engine.loads && (recipe.engine == "any" || recipe.engine == engine.engine)) return;
    if (recipe.engine == "any" || recipe.engine == engine.engine)
      reasons += (reasons.empty() ? "" : "; ") + engine.engine + " " + engine.reason;
  }
  throw user_error("no engine asked for loads such a checkpoint: " + reasons, recipe.where("output.engine"),
                   "choose another format, kv_cache or engine");
}

}  // namespace ptq::recipes
