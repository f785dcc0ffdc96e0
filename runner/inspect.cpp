#include "runner/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "checkpoint/training_checkpoint.h"
#include "runner/machine.h"
#include "runner/megatron_arrays.h"
#include "runner/native_reader.h"
#include "runner/stored_encoding.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

/// "fp8 128x128 blocks (native)" or "mxfp4 (native)" for what publishers ship, quant_algo for exports, else the tool; null for plain
/// models.
Json quantization_of(const Json& config) {
  const std::string native = native_quantization(config);
  const Json words = config.value("quantization_config", Json::object());
  if (!native.empty()) {
    const Json block = words.value("weight_block_size", Json::array());
    return native + (block.size() == 2 ? " " + block[0].dump() + "x" + block[1].dump() + " blocks" : "") + " (native)";
  }
  if (words.contains("quant_algo")) return words.at("quant_algo");
  const std::string tool = quantized_by(config);
  return tool.empty() ? Json(nullptr) : Json(tool);
}

/// Layers that config.json does not count: multi-token prediction lies behind the last one, under the next numbers.
int64_t extra_layers(const checkpoint::Reader& reader, const layers::ModelSpec& model) {
  if (model.layers.empty()) return 0;
  const std::string& first = model.layers.front().prefix;
  const std::string stem = first.substr(0, first.rfind('.') + 1);
  std::set<std::string> extra;
  const auto& tensors = reader.tensors();
  for (auto at = tensors.lower_bound(stem); at != tensors.end() && at->first.starts_with(stem); ++at) {
    const std::string number = at->first.substr(stem.size(), at->first.find('.', stem.size()) - stem.size());
    const bool is_number =
        !number.empty() && number.size() < 10 && std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (is_number && std::stoul(number) >= model.layers.size()) extra.insert(number);
  }
  return static_cast<int64_t>(extra.size());
}

/// A training checkpoint without the config.json of its model.
void inspect_arrays(const std::string& path, const checkpoint::TrainingCheckpoint& training, bool json) {
  std::string format;
  const auto store = checkpoint::open_arrays(training, format);
  std::map<std::string, int64_t> bytes_by_dtype;
  int64_t bytes = 0;
  for (const auto& [name, array] : store->arrays()) {
    const int64_t own = element_count(array.shape) * dtype_bytes(array.dtype);
    bytes_by_dtype[std::string(dtype_name(array.dtype))] += own;
    bytes += own;
  }
  const std::vector<std::string> ignored = MegatronArrays(*store).ignored();
  if (json) {
    const Json result{{"path", path},
                      {"format", format},
                      {"arrays", store->arrays().size()},
                      {"files", store->files().size()},
                      {"bytes", bytes},
                      {"bytes_by_dtype", bytes_by_dtype},
                      {"ignored", ignored}};
    fmt::print("{}\n", result.dump(2));
    return;
  }
  fmt::print("{}\n", path);
  fmt::print("  {} in {} arrays, {} {} file(s)\n", human_bytes(static_cast<double>(bytes)), store->arrays().size(), store->files().size(),
             format);
  for (const auto& [dtype, own] : bytes_by_dtype) fmt::print("    {:<9} {}\n", dtype, human_bytes(static_cast<double>(own)));
  if (!ignored.empty()) fmt::print("  ignored: {}\n", ignored_words(ignored));
  fmt::print("  no config.json: give --config FOLDER to see the model\n");
}

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : "no"; }

}  // namespace

void inspect(const std::string& path, const std::string& config_folder, bool json) {
  const auto training = checkpoint::find_training_checkpoint(path);
  if (!training.container.empty() && training.export_folder.empty() && config_folder.empty() &&
      !checkpoint::exists(training.weights + "/config.json")) {
    inspect_arrays(path, training, json);
    return;
  }
  const SourceModel source = open_source(path, config_folder);
  const layers::ModelSpec& model = source.spec;
  const SourceModel as_stored = open_source(path, config_folder, Shown::kAsStored);
  const checkpoint::Reader* files_reader = as_stored.reader.get();
  const Json quantization = quantization_of(source.config);
  std::map<std::string, int64_t> bytes_by_dtype, linears_by_format;
  for (const auto& [name, entry] : files_reader->tensors()) {
    bytes_by_dtype[std::string(dtype_name(entry.dtype))] += entry.bytes;
  }
  const StoredEncodings encodings(source);
  int64_t parameters = model.vocab * model.hidden * (model.tied ? 1 : 2) +
                       model.hidden * (model.final_norm.kind == layers::NormSpec::Kind::kLayerNorm1p ? 2 : 1),
          attention = 0, kv_heads = 0, moe_layers = 0, experts = 0, experts_per_token = 0;
  for (const auto& layer : model.layers) {
    for (const auto& tensor : layer.tensors) parameters += element_count(tensor.shape);
    for (const auto& linear : layer.linears) {
      const std::string weight = linear.tensor(".weight");
      const checkpoint::TensorEntry* stored = files_reader->find(weight);
      const checkpoint::TensorEntry* shown = source.reader->find(weight);
      const bool is_native = shown && (!stored || stored->dtype != shown->dtype);
      linears_by_format[is_native ? quantization.get<std::string>() : recipes::info(encodings.of(linear).format).name] += 1;
    }
    if (const layers::MoeSpec* moe = layer.moe()) {
      ++moe_layers;
      experts = std::max(experts, moe->router.experts);
      experts_per_token = std::max(experts_per_token, moe->router.top_k);
    }
    if (!layer.attention()) continue;
    ++attention;
    kv_heads = layer.attention()->kv_heads;
  }
  const int64_t mtp_layers = extra_layers(*files_reader, model);
  const auto& config = source.config;
  const Json words = config.value("quantization_config", Json::object());
  const std::string architecture = layers::Config(config, "config.json").architecture();
  const Json result{{"path", path},
                    {"format", source.reader->format()},
                    {"architecture", architecture},
                    {"family", model.family},
                    {"layers", model.layers.size()},
                    {"attention_layers", attention},
                    {"moe_layers", moe_layers},
                    {"experts", experts},
                    {"experts_per_token", experts_per_token},
                    {"mtp_layers", mtp_layers},
                    {"hidden_size", model.hidden},
                    {"kv_heads", kv_heads},
                    {"vocab_size", model.vocab},
                    {"tied_embeddings", model.tied},
                    {"parameters", parameters},
                    {"tensors", files_reader->tensors().size()},
                    {"files", files_reader->files().size()},
                    {"bytes", source.weight_bytes},
                    {"bytes_by_dtype", bytes_by_dtype},
                    {"ignored", source.ignored},
                    {"linears_by_format", linears_by_format},
                    {"quantization", quantization},
                    {"kv_cache", words.contains("kv_cache_scheme") ? words.at("kv_cache_scheme") : Json(nullptr)}};
  if (json) {
    fmt::print("{}\n", result.dump(2));
    return;
  }
  fmt::print("{}\n", path);
  fmt::print("  {} ({}), {} layers ({} with attention), hidden {}, vocabulary {}{}\n", architecture, model.family, model.layers.size(),
             attention, model.hidden, model.vocab, model.tied ? ", tied embeddings" : "");
  if (experts > 0) fmt::print("  {} layers of {} routed experts, {} per token\n", moe_layers, experts, experts_per_token);
  if (mtp_layers > 0) fmt::print("  and {} layer(s) of multi-token prediction\n", mtp_layers);
  fmt::print("  {:.3f} B parameters, {} in {} tensors, {} {} file(s)\n", static_cast<double>(parameters) / 1e9,
             human_bytes(static_cast<double>(source.weight_bytes)), files_reader->tensors().size(), files_reader->files().size(),
             source.reader->format());
  for (const auto& [dtype, bytes] : bytes_by_dtype) fmt::print("    {:<9} {}\n", dtype, human_bytes(static_cast<double>(bytes)));
  std::string formats;
  for (const auto& [format, count] : linears_by_format)
    formats += fmt::format("{}{} × {}", formats.empty() ? "" : ", ", count, format == "none" ? "unquantized" : format);
  fmt::print("  linears: {}\n", formats);
  fmt::print("  quantized: {}\n", text_of(quantization));
  if (!source.ignored.empty()) fmt::print("  ignored: {}\n", ignored_words(source.ignored));
}

}  // namespace ptq::runner
