#include "runner/inspect.h"

#include <fmt/format.h>

#include <map>
#include <set>

#include "runner/machine.h"
#include "runner/source_model.h"

namespace ptq::runner {

void inspect(const std::string& path, bool json) {
  const SourceModel source = open_source(path);
  const layers::ModelSpec& model = source.spec;
  std::map<std::string, int64_t> bytes_by_dtype, linears_by_format;
  std::set<std::string> files;
  for (const auto& [name, entry] : source.reader->tensors()) {
    bytes_by_dtype[std::string(dtype_name(entry.dtype))] += entry.bytes;
    files.insert(entry.file);
  }
  int64_t parameters = model.vocab * model.hidden * (model.tied ? 1 : 2) +
                       model.hidden * (model.final_norm.kind == layers::NormSpec::Kind::kLayerNorm1p ? 2 : 1),
          attention = 0, kv_heads = 0;
  for (const auto& layer : model.layers) {
    for (const auto& tensor : layer.tensors) parameters += element_count(tensor.shape);
    for (const auto& linear : layer.linears) linears_by_format[recipes::info(stored_format(*source.reader, linear)).name] += 1;
    if (!layer.attention()) continue;
    ++attention;
    kv_heads = layer.attention()->kv_heads;
  }
  const auto& config = source.config;
  const checkpoint::Json words = config.value("quantization_config", checkpoint::Json::object());
  checkpoint::Json result{
      {"path", path},
      {"format", source.reader->format()},
      {"architecture", layers::Config(config, "config.json").architecture()},
      {"family", model.family},
      {"layers", model.layers.size()},
      {"attention_layers", attention},
      {"experts", 0},
      {"hidden_size", model.hidden},
      {"kv_heads", kv_heads},
      {"vocab_size", model.vocab},
      {"tied_embeddings", model.tied},
      {"parameters", parameters},
      {"tensors", source.reader->tensors().size()},
      {"files", files.size()},
      {"bytes", source.weight_bytes},
      {"bytes_by_dtype", bytes_by_dtype},
      {"linears_by_format", linears_by_format},
      {"quantization", words.empty() ? checkpoint::Json(nullptr) : words.value("quant_algo", checkpoint::Json(nullptr))},
      {"kv_cache", words.contains("kv_cache_scheme") ? words.at("kv_cache_scheme") : checkpoint::Json(nullptr)}};
  if (json) {
    fmt::print("{}\n", result.dump(2));
    return;
  }
  fmt::print("{}\n", path);
  fmt::print("  {} ({}), {} layers ({} with attention), hidden {}, vocabulary {}{}\n", result["architecture"].get<std::string>(),
             model.family, model.layers.size(), attention, model.hidden, model.vocab, model.tied ? ", tied embeddings" : "");
  fmt::print("  {:.3f} B parameters, {} in {} tensors, {} {} file(s)\n", static_cast<double>(parameters) / 1e9,
             human_bytes(static_cast<double>(source.weight_bytes)), source.reader->tensors().size(), files.size(), source.reader->format());
  for (const auto& [dtype, bytes] : bytes_by_dtype) fmt::print("    {:<9} {}\n", dtype, human_bytes(static_cast<double>(bytes)));
  std::string formats;
  for (const auto& [format, count] : linears_by_format)
    formats += fmt::format("{}{} × {}", formats.empty() ? "" : ", ", count, format == "none" ? "unquantized" : format);
  fmt::print("  linears: {}\n", formats);
  fmt::print("  quantized: {}\n", result["quantization"].is_null() ? "no" : result["quantization"].get<std::string>());
}

}  // namespace ptq::runner
