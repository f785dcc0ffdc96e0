#include "recipes/export_metadata.h"

#include <algorithm>
#include <set>

#include "recipes/exclusions.h"
#include "recipes/other_dialects.h"
#include "recipes/version.h"

namespace ptq::recipes {

namespace {

/// Readers look at producer.name; the version says which of ModelOpt's layouts this is. Our own name goes into an extra key.
Json producer() { return {{"name", "modelopt"}, {"version", "0.47.0"}, {"generator", kProgram}}; }

/// Of kv_cache_quantized_layers.
constexpr int kKvSchema = 1;

bool is_awq(const std::string& algo) { return algo == "W4A16_AWQ" || algo == "W4A8_AWQ" || algo == "NVFP4_AWQ"; }

/// What ModelOpt says of a format beside its name: `words` gets the keys. AWQ's are there with and without smoothing vectors.
void add_group_words(const Encoding& encoding, Json& words) {
  if (group_size(encoding) > 0 && encoding.format != Format::kMxfp4) words["group_size"] = group_size(encoding);
  if (!is_awq(quant_algo(encoding))) return;
  words["has_zero_point"] = false;
  words["pre_quant_scale"] = true;
}

Json layer_words(const Encoding& encoding) {
  Json words{{"quant_algo", quant_algo(encoding)}};
  add_group_words(encoding, words);
  return words;
}

Json kv_words(const std::string& algo) {
  if (algo == "FP8") return {{"dynamic", false}, {"num_bits", 8}, {"type", "float"}};
  return algo;
}

bool has_config_group(const Encoding& encoding) {
  const std::string algo = quant_algo(encoding);
  return algo == "FP8" || algo == "NVFP4" || algo == "W4A16_NVFP4";
}

/// One entry of config_groups. ModelOpt spells out three formats and names the others.
Json config_group(const Encoding& encoding, const std::vector<std::string>& targets) {
  if (!has_config_group(encoding)) return {{"quant_algo", quant_algo(encoding)}, {"targets", targets}};
  Json side{{"dynamic", false}, {"num_bits", encoding.format == Format::kFp8 ? 8 : 4}, {"type", "float"}};
  if (group_size(encoding) > 0) side["group_size"] = group_size(encoding);
  Json group;
  if (quantizes_activations(encoding)) group["input_activations"] = side;
  group["weights"] = side;
  group["targets"] = targets;
  return group;
}

/// The KV cache layer by layer; layers that are not listed are not quantized.
void add_kv_layers(const ExportMetadata& metadata, Json& words) {
  Json layers = Json::object();
  for (const auto& [module, algo] : metadata.kv_cache_layers) layers[module] = {{"quant_algo", algo}};
  words["kv_cache_quantized_layers"] = layers;
  words["kv_cache_schema_version"] = kKvSchema;
}

Json modelopt_words(const ExportMetadata& metadata) {
  Json words = Json::object();
  if (metadata.is_mixed()) {
    std::vector<std::string> order;
    std::map<std::string, std::pair<Encoding, std::vector<std::string>>> groups;
    Json layers = Json::object();
    for (const auto& [module, encoding] : metadata.quantized_layers) {
      layers[module] = layer_words(encoding);
      const std::string key = layers[module].dump();
      if (!groups.count(key)) order.push_back(key);
      groups[key].first = encoding;
      groups[key].second.push_back(module);
    }
    Json config_groups = Json::object();
    for (size_t i = 0; i < order.size(); ++i) {
      auto& [encoding, targets] = groups.at(order[i]);
      std::sort(targets.begin(), targets.end());
      config_groups["group_" + std::to_string(i)] = config_group(encoding, targets);
    }
    words["config_groups"] = config_groups;
    words["quantized_layers"] = layers;
    words["ignore"] = Json::array();
  } else {
    if (!metadata.formats.empty() && has_config_group(metadata.formats[0].encoding))
      words["config_groups"]["group_0"] = config_group(metadata.formats[0].encoding, {"Linear"});
    words["ignore"] = metadata.excluded;
  }
  words["quant_algo"] = metadata.quant_algo.empty() ? Json(nullptr) : Json(metadata.quant_algo);
  // Not in ModelOpt's own file; without it TensorRT-LLM warns that the two files disagree.
  if (metadata.formats.size() == 1 && !metadata.is_mixed())
    if (const Json layer = layer_words(metadata.formats[0].encoding); layer.contains("group_size"))
      words["group_size"] = layer.at("group_size");
  if (metadata.has_mixed_kv()) {
    words["kv_cache_quant_algo"] = kMixedPrecision;
    add_kv_layers(metadata, words);
  } else if (!metadata.kv_cache_algo.empty()) {
    words["kv_cache_scheme"] = kv_words(metadata.kv_cache_algo);
  }
  words["producer"] = producer();
  words["quant_method"] = "modelopt";
  return words;
}

/// Of all attention blocks one, or MIXED_PRECISION with the list of layers.
void describe_kv_cache(const layers::ModelSpec& model, const KvFormats& formats, ExportMetadata& metadata) {
  std::set<KvFormat> distinct;
  for (const auto& layer : model.layers) {
    if (!layer.attention()) continue;
    const KvFormat format = formats.at(layer.attention()->module);
    distinct.insert(format);
    if (format != KvFormat::kNone) metadata.kv_cache_layers.emplace_back(layer.attention()->module, kv_algo(format));
  }
  if (distinct.size() > 1) {
    metadata.kv_cache_algo = kMixedPrecision;
    return;
  }
  if (!metadata.kv_cache_layers.empty()) metadata.kv_cache_algo = metadata.kv_cache_layers[0].second;
  metadata.kv_cache_layers.clear();
}

}  // namespace

ExportMetadata describe_export(const layers::ModelSpec& model, const std::map<std::string, Decision>& decisions, const KvFormats& kv_cache,
                               Dialect dialect, const std::vector<std::string>& outside) {
  ExportMetadata metadata;
  metadata.dialect = dialect;
  describe_kv_cache(model, kv_cache, metadata);
  std::vector<std::string> quantized, unquantized = outside;
  std::set<std::string> listed, plain_experts;
  /// Under `key` in a mixture: servers know a layer's routed experts, which have one format, as one module.
  const auto add = [&](const layers::LinearSpec& linear, const std::string& key) {
    const Encoding& encoding = decisions.at(linear.module).encoding;
    if (!encoding.is_quantized()) {
      unquantized.push_back(linear.module);
      if (linear.is_routed()) plain_experts.insert(key);
      return;
    }
    quantized.push_back(linear.module);
    auto use = std::find_if(metadata.formats.begin(), metadata.formats.end(), [&](const FormatUse& other) {
      return other.encoding.format == encoding.format && group_size(other.encoding) == group_size(encoding);
    });
    if (use == metadata.formats.end()) use = metadata.formats.insert(use, {encoding, false, false, {}, {}});
    use->encoding.pre_quant_scale = use->encoding.pre_quant_scale || encoding.pre_quant_scale;
    if (linear.is_routed()) use->containers.insert(key);
    use->in_stacked_experts = use->in_stacked_experts || linear.is_stacked();
    use->has_partial_blocks = use->has_partial_blocks || (encoding.format == Format::kFp8Blocks && linear.in % 128 != 0);
    if (!listed.insert(key).second) return;
    use->modules.push_back(key);
    metadata.quantized_layers.emplace_back(key, encoding);
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
  if (dialect == Dialect::kModelOpt) unquantized.push_back(model.embedding.substr(0, model.embedding.rfind('.')));

  if (metadata.formats.empty()) return metadata;
  if (metadata.is_mixed()) {
    metadata.quant_algo = kMixedPrecision;
  } else {
    metadata.quant_algo = quant_algo(metadata.formats[0].encoding);
    metadata.quantized_layers.clear();
  }
  if (dialect != Dialect::kModelOpt)
    metadata.excluded = exact_exclusions(unquantized, plain_experts);
  else if (!metadata.is_mixed())
    metadata.excluded = summarize_excluded(unquantized, quantized);
  return metadata;
}

std::optional<Json> hf_quant_config(const ExportMetadata& metadata) {
  if (metadata.dialect != Dialect::kModelOpt || metadata.is_plain()) return std::nullopt;
  const auto word = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
  Json quantization{{"quant_algo", word(metadata.quant_algo)}, {"kv_cache_quant_algo", word(metadata.kv_cache_algo)}};
  if (metadata.formats.size() == 1 && !metadata.is_mixed()) {
    add_group_words(metadata.formats[0].encoding, quantization);
    quantization["exclude_modules"] = metadata.excluded;
  } else {
    Json layers = Json::object();
    for (const auto& [module, encoding] : metadata.quantized_layers) layers[module] = layer_words(encoding);
    quantization["quantized_layers"] = layers;
  }
  if (metadata.has_mixed_kv()) add_kv_layers(metadata, quantization);
  return Json{{"producer", producer()}, {"quantization", quantization}};
}

Json quantized_config(const Json& source_config, const ExportMetadata& metadata) {
  Json config = source_config;
  for (const char* older : {"quantization_config", "compression_config"}) {
    config.erase(older);
    if (config.contains("text_config") && config.at("text_config").is_object()) config.at("text_config").erase(older);
  }
  if (metadata.is_plain()) return config;
  switch (metadata.dialect) {
    case Dialect::kModelOpt:
      config["quantization_config"] = modelopt_words(metadata);
      break;
    case Dialect::kCompressedTensors:
      config["quantization_config"] = compressed_words(metadata);
      break;
    case Dialect::kDeepseekFp8:
      config["quantization_config"] = deepseek_words(metadata);
      break;
  }
  return config;
}

std::vector<std::string> metadata_faults(const Json& file, const Json& words) {
  std::vector<std::string> faults;
  const auto claim = [&](bool holds, const std::string& otherwise) {
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
  const Json kv = quantization.value("kv_cache_quant_algo", Json(nullptr));
  const bool is_mixed = kv == kMixedPrecision, has_scheme = words.contains("kv_cache_scheme");
  claim((kv.is_null() || is_mixed) != has_scheme, "kv_cache_scheme and kv_cache_quant_algo disagree");
  claim(kv.is_null() || !has_scheme || words.at("kv_cache_scheme") == kv_words(kv.get<std::string>()),
        "kv_cache_scheme is not that of kv_cache_quant_algo");
  for (const char* key : {"kv_cache_quantized_layers", "kv_cache_schema_version"}) {
    const Json ours = quantization.value(key, Json(nullptr)), theirs = words.value(key, Json(nullptr));
    claim(ours == theirs, std::string("the two JSON files name different ") + key);
    claim(ours.is_null() != is_mixed, std::string(key) + " and kv_cache_quant_algo disagree");
  }
  claim(words.value("kv_cache_quant_algo", Json(nullptr)) == (is_mixed ? kv : Json(nullptr)),
        "the two JSON files name different kv_cache_quant_algo");
  claim(!is_mixed || quantization.value("kv_cache_schema_version", 0) == kKvSchema, "kv_cache_schema_version is not 1");
  return faults;
}

Json generation_config(const Json& source) {
  Json config = source;
  const auto has_value = [&](const char* key) { return config.contains(key) && !config.at(key).is_null(); };
  if (has_value("top_k") || has_value("top_p")) config["do_sample"] = true;
  return config;
}

}  // namespace ptq::recipes
