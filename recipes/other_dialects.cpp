#include "recipes/other_dialects.h"

#include <algorithm>
#include <string_view>

#include "kernels/core/error.h"

namespace ptq::recipes {

namespace {

Json values(int bits, const char* type, const char* strategy, Json dynamic) {
  return {{"num_bits", bits}, {"type", type}, {"symmetric", true}, {"strategy", strategy}, {"dynamic", std::move(dynamic)}};
}

Json grouped(Json values, int64_t group_size, const char* scale_dtype = nullptr) {
  values["group_size"] = group_size;
  if (scale_dtype) values["scale_dtype"] = scale_dtype;
  return values;
}

/// The words of one format; targets come last.
Json group_words(const Encoding& encoding) {
  constexpr const char *kE4M3 = "torch.float8_e4m3fn", *kE8M0 = "torch.uint8";
  const auto group = [](const char* format, Json weights, Json inputs) {
    return Json{
        {"weights", std::move(weights)}, {"input_activations", std::move(inputs)}, {"output_activations", nullptr}, {"format", format}};
  };
  switch (encoding.format) {
    case Format::kFp8:
      return group("float-quantized", values(8, "float", "tensor", false), values(8, "float", "tensor", false));
    case Format::kFp8Channels:
      return group("float-quantized", values(8, "float", "channel", false), values(8, "float", "token", true));
    case Format::kFp8Blocks: {
      Json weights = values(8, "float", "block", false);
      weights["block_structure"] = {128, 128};
      return group("float-quantized", weights, grouped(values(8, "float", "group", true), 128));
    }
    case Format::kInt8:
      return group("int-quantized", values(8, "int", "channel", false), values(8, "int", "tensor", false));
    case Format::kInt8WeightOnly:
      return group("pack-quantized", values(8, "int", "channel", false), nullptr);
    case Format::kInt4:
      return group("pack-quantized", grouped(values(4, "int", "group", false), group_size(encoding)), nullptr);
    case Format::kInt4Fp8:
      return group("pack-quantized", grouped(values(4, "int", "group", false), group_size(encoding)), values(8, "float", "token", true));
    case Format::kNvfp4:
      return group("nvfp4-pack-quantized", grouped(values(4, "float", "tensor_group", false), 16, kE4M3),
                   grouped(values(4, "float", "tensor_group", "local"), 16, kE4M3));
    case Format::kNvfp4WeightOnly:
      return group("nvfp4-pack-quantized", grouped(values(4, "float", "tensor_group", false), 16, kE4M3), nullptr);
    case Format::kMxfp8:
      return group("mxfp8-quantized", grouped(values(8, "float", "group", false), 32, kE8M0),
                   grouped(values(8, "float", "group", true), 32, kE8M0));
    case Format::kMxfp4:
      return group("mxfp4-pack-quantized", grouped(values(4, "float", "group", false), 32, kE8M0),
                   grouped(values(4, "float", "group", true), 32, kE8M0));
    case Format::kNone:
      break;
  }
  throw bug("an unquantized linear has no words");
}

/// A regular expression for everything below `module`.
std::string below(const std::string& module) {
  std::string text = "re:";
  for (const char c : module) text += c == '.' ? "\\." : std::string(1, c);
  return text + "\\..*";
}

/// The module that an expression of below() is about; "" for any other text.
std::string parent_of(const std::string& pattern) {
  constexpr std::string_view kEnd = "\\..*";
  if (!pattern.starts_with("re:") || !pattern.ends_with(kEnd)) return "";
  std::string name = pattern.substr(3, pattern.size() - 3 - kEnd.size());
  std::erase(name, '\\');
  return below(name) == pattern ? name : "";
}

/// Names of a mixture's group: linears by their names, routed experts by the layer's container.
std::vector<std::string> targets_of(const FormatUse& use) {
  std::vector<std::string> targets;
  for (const auto& module : use.modules) targets.push_back(use.containers.count(module) ? below(module) : module);
  std::sort(targets.begin(), targets.end());
  return targets;
}

bool holds_all(const Json& theirs, const Json& ours) {
  if (ours.is_null() || theirs.is_null()) return ours.is_null() && theirs.is_null();
  for (const auto& [key, value] : ours.items())
    if (!theirs.contains(key) || theirs.at(key) != value) return false;
  return true;
}

Format format_of(const Json& group) {
  const Json weights = group.value("weights", Json(nullptr)), inputs = group.value("input_activations", Json(nullptr));
  for (const FormatInfo& format : all_formats()) {
    if (format.format == Format::kNone) continue;
    Encoding encoding{format.format, Dialect::kCompressedTensors};
    if (weights.is_object() && weights.value("group_size", Json(nullptr)).is_number_integer())
      encoding.group_size = weights.at("group_size").get<int64_t>();
    const Json ours = group_words(encoding);
    if (holds_all(weights, ours.at("weights")) && holds_all(inputs, ours.at("input_activations"))) return format.format;
  }
  throw data_error("config_groups has a group of a format that is not known here: " + group.dump(), "config.json  quantization_config");
}

}  // namespace

std::vector<std::string> exact_exclusions(const std::vector<std::string>& unquantized, const std::set<std::string>& containers) {
  std::set<std::string> names;
  for (const std::string& name : unquantized) {
    const auto inside = [&](const std::string& container) { return name.starts_with(container + ".") || name == container; };
    const auto container = std::find_if(containers.begin(), containers.end(), inside);
    names.insert(container == containers.end() ? name : below(*container));
  }
  return {names.begin(), names.end()};
}

Json compressed_words(const ExportMetadata& metadata) {
  Json groups = Json::object();
  for (size_t i = 0; i < metadata.formats.size(); ++i) {
    const FormatUse& use = metadata.formats[i];
    Json group{{"targets", metadata.is_mixed() ? targets_of(use) : std::vector<std::string>{"Linear"}}};
    group.update(group_words(use.encoding));
    groups["group_" + std::to_string(i)] = group;
  }
  Json kv = nullptr;
  if (!metadata.kv_cache_algo.empty()) kv = values(8, "float", "tensor", false);
  const Json format = metadata.formats.size() == 1 ? groups.at("group_0").at("format") : Json("mixed-precision");
  return {{"quant_method", "compressed-tensors"}, {"format", format},      {"quantization_status", "compressed"}, {"config_groups", groups},
          {"ignore", metadata.excluded},          {"kv_cache_scheme", kv}, {"global_compression_ratio", nullptr}};
}

Json deepseek_words(const ExportMetadata& metadata) {
  // Its readers know no expressions: a container's name stands for what is in it.
  Json kept = Json::array();
  for (const std::string& name : metadata.excluded) {
    const std::string parent = parent_of(name);
    kept.push_back(parent.empty() ? name : parent);
  }
  return {{"quant_method", "fp8"},
          {"fmt", "e4m3"},
          {"activation_scheme", "dynamic"},
          {"weight_block_size", {128, 128}},
          {"modules_to_not_convert", kept}};
}

ModuleNames::ModuleNames(const Json& patterns) {
  for (const Json& pattern : patterns) {
    const auto text = pattern.get<std::string>();
    const std::string parent = parent_of(text);
    if (text == "Linear")
      has_all_ = true;
    else if (!parent.empty())
      parents_.insert(parent);
    else if (text.starts_with("re:"))
      expressions_.emplace_back(text.substr(3));
    else
      names_.insert(text);
  }
}

bool ModuleNames::has(const std::string& module) const {
  if (has_all_ || names_.count(module)) return true;
  for (size_t dot = module.find('.'); dot != std::string::npos; dot = module.find('.', dot + 1))
    if (parents_.count(module.substr(0, dot))) return true;
  return std::any_of(expressions_.begin(), expressions_.end(), [&](const auto& regex) { return std::regex_match(module, regex); });
}

CompressedFormats::CompressedFormats(const Json& words) : ignored_(words.value("ignore", Json::array())) {
  const Json groups = words.value("config_groups", Json::object());
  for (const auto& [name, group] : groups.items())
    groups_.emplace_back(ModuleNames(group.value("targets", Json::array())), format_of(group));
}

Format CompressedFormats::of(const std::string& module) const {
  if (ignored_.has(module)) return Format::kNone;
  const auto group = std::find_if(groups_.begin(), groups_.end(), [&](const auto& entry) { return entry.first.has(module); });
  return group == groups_.end() ? Format::kNone : group->second;
}

std::vector<std::string> compressed_faults(const Json& words) {
  std::vector<std::string> faults;
  const auto claim = [&](bool holds, const std::string& otherwise) {
    if (!holds) faults.push_back(otherwise);
  };
  const Json groups = words.value("config_groups", Json::object());
  claim(words.value("quant_method", "") == "compressed-tensors", "config.json: quant_method is not compressed-tensors");
  claim(words.value("quantization_status", "") == "compressed", "config.json: quantization_status is not compressed");
  claim(!groups.empty(), "config.json: config_groups is empty");
  for (const auto& [name, group] : groups.items()) {
    format_of(group);
    claim(!group.value("targets", Json::array()).empty(), "config.json: " + name + " has no targets");
    claim(groups.size() == 1 || group.value("targets", Json::array()) != Json::array({"Linear"}),
          "config.json: " + name + " is one of several and targets every Linear");
    claim(groups.size() > 1 || words.value("format", "") == group.value("format", ""), "config.json: format is not that of " + name);
  }
  claim(groups.size() < 2 || words.value("format", "") == "mixed-precision", "config.json: format is not mixed-precision");
  const Json kv = words.value("kv_cache_scheme", Json(nullptr));
  claim(kv.is_null() || holds_all(kv, values(8, "float", "tensor", false)),
        "config.json: kv_cache_scheme is not FP8 with one static scale");
  return faults;
}

std::vector<std::string> deepseek_faults(const Json& words) {
  std::vector<std::string> faults;
  if (words.value("quant_method", "") != "fp8") faults.emplace_back("config.json: quant_method is not fp8");
  if (words.value("fmt", "") != "e4m3") faults.emplace_back("config.json: fmt is not e4m3");
  if (words.value("activation_scheme", "") != "dynamic") faults.emplace_back("config.json: activation_scheme is not dynamic");
  if (words.value("weight_block_size", Json(nullptr)) != Json({128, 128}))
    faults.emplace_back("config.json: weight_block_size is not 128 by 128");
  return faults;
}

}  // namespace ptq::recipes
