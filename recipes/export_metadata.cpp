#include "recipes/export_metadata.h"

#include <algorithm>
#include <set>

#include "recipes/exclusions.h"
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

ExportMetadata describe_export(const layers::ModelSpec& model, const std::map<std::string, Decision>& decisions,
                               const std::string& kv_cache, const std::vector<std::string>& outside) {
  ExportMetadata metadata;
  metadata.kv_cache_algo = kv_cache == "fp8" ? "FP8" : "";
  std::vector<std::string> quantized, unquantized = outside;
  std::set<Format> formats;
  std::set<std::string> listed;
  /// Under `key` in a mixture: servers know a layer's routed experts, which have one format, as one module.
  const auto add = [&](const layers::LinearSpec& linear, const std::string& key) {
    const Format format = decisions.at(linear.module).format;
    if (format == Format::kNone) {
      unquantized.push_back(linear.module);
      return;
    }
    formats.insert(format);
    quantized.push_back(linear.module);
    if (listed.insert(key).second) metadata.quantized_layers.emplace_back(key, format);
  };
  for (const auto& layer : model.layers) {
    const layers::MoeSpec* moe = layer.moe();
    for (const auto& linear : layer.linears) {
      require(moe || !linear.is_routed(), "a routed expert outside a mixture of experts");
      add(linear, linear.is_routed() ? moe->module : linear.module);
    }
    if (moe) unquantized.push_back(moe->router.module);
  }
  add(model.lm_head, model.lm_head.module);
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
  for (const char* older : {"quantization_config", "compression_config"}) {
    config.erase(older);
    if (config.contains("text_config") && config.at("text_config").is_object()) config.at("text_config").erase(older);
  }
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

std::vector<std::string> metadata_faults(const Json& file, const Json& words) {
  std::vector<std::string> faults;
  const auto claim = [&](bool holds, const char* otherwise) {
    if (!holds) faults.emplace_back(otherwise);
  };
  const Json quantization = file.value("quantization", Json::object());
  claim(file.contains("producer") && file.at("producer").value("name", "") == "modelopt",
        "hf_quant_config.json: producer.name is not modelopt");
  claim(words.value("quant_method", "") == "modelopt", "config.json: quant_method is not modelopt");
  claim(quantization.contains("quant_algo") && words.contains("quant_algo") && quantization.at("quant_algo") == words.at("quant_algo"),
        "the two JSON files name different quant_algo");
  claim(quantization.contains("kv_cache_quant_algo"), "hf_quant_config.json: kv_cache_quant_algo is missing");
  const Json excluded = quantization.value("exclude_modules", Json::array());
  claim(excluded == words.value("ignore", Json::array()), "exclude_modules and ignore differ");
  claim(quantization.value("quantized_layers", Json::object()) == words.value("quantized_layers", Json::object()),
        "the two JSON files name different quantized_layers");
  claim(std::is_sorted(excluded.begin(), excluded.end()) && std::adjacent_find(excluded.begin(), excluded.end()) == excluded.end(),
        "exclude_modules is not sorted and unique");
  const bool kv_null = !quantization.contains("kv_cache_quant_algo") || quantization.at("kv_cache_quant_algo").is_null();
  claim(kv_null != words.contains("kv_cache_scheme"), "kv_cache_scheme and kv_cache_quant_algo disagree");
  return faults;
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
