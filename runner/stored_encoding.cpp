#include "runner/stored_encoding.h"

#include <algorithm>

#include "runner/native_reader.h"

namespace ptq::runner {

using checkpoint::Json;
using recipes::Dialect;
using recipes::Encoding;
using recipes::Format;

namespace {

/// kv_cache_scheme, in any dialect.
recipes::KvFormat format_of_scheme(const Json& scheme) {
  if (scheme.is_null()) return recipes::KvFormat::kNone;
  if (scheme.is_object() && scheme.value("num_bits", 0) == 8 && scheme.value("type", "") == "float") return recipes::KvFormat::kFp8;
  const auto format = scheme.is_string() ? recipes::find_kv_algo(scheme.get<std::string>()) : std::nullopt;
  if (!format || *format == recipes::KvFormat::kFp8)
    throw data_error("the KV cache is of a format this version does not read: " + scheme.dump(), "config.json  kv_cache_scheme");
  return *format;
}

}  // namespace

StoredEncodings::StoredEncodings(const SourceModel& source) : reader_(*source.reader) {
  const Json words = source.config.value("quantization_config", Json::object());
  const std::string method = words.is_object() ? words.value("quant_method", "") : "";
  if (method == "fp8") dialect_ = Dialect::kDeepseekFp8;
  if (method != "compressed-tensors") return;
  dialect_ = Dialect::kCompressedTensors;
  words_.emplace(words);
}

bool StoredEncodings::fits(const Encoding& encoding, const layers::LinearSpec& linear) const {
  if (!recipes::layout_fault(encoding, linear).empty()) return false;
  const auto parts = recipes::encoded_tensors(encoding, linear);
  return std::all_of(parts.begin(), parts.end(), [&](const auto& part) {
    const checkpoint::TensorEntry* entry = reader_.find(part.tensor.name);
    return entry && entry->dtype == part.tensor.dtype && entry->shape == part.tensor.shape;
  });
}

Encoding StoredEncodings::of(const layers::LinearSpec& linear) const {
  const checkpoint::TensorEntry* weight = reader_.find(linear.tensor(".weight"));
  if (weight && is_float(weight->dtype)) return {Format::kNone, dialect_};
  // Formats with more tensors come before those that have some of them.
  for (const Format format : {Format::kFp8, Format::kFp8Channels, Format::kFp8Blocks, Format::kInt8, Format::kInt8WeightOnly,
                              Format::kInt4Fp8, Format::kInt4, Format::kNvfp4, Format::kNvfp4WeightOnly, Format::kMxfp8, Format::kMxfp4}) {
    Encoding encoding{format, dialect_, recipes::info(format).group_size, reader_.find(linear.tensor(".pre_quant_scale")) != nullptr};
    const bool is_int4 = format == Format::kInt4 || format == Format::kInt4Fp8;
    if (const auto* scale = reader_.find(linear.tensor(".weight_scale")); is_int4 && scale && !scale->shape.empty())
      encoding.group_size = linear.in / std::max<int64_t>(1, scale->shape.back());
    if (is_int4 && (encoding.group_size < 1 || (words_ && words_->of(linear.module) != format))) continue;
    if (fits(encoding, linear)) return encoding;
  }
  if (!weight) weight = reader_.find(linear.tensor(".weight_packed"));
  if (!weight)
    throw data_error("the checkpoint has no tensor " + linear.tensor(".weight") + ", which its config.json asks for", reader_.folder(),
                     "config.json and weights must be of the same model; check that the download is complete");
  throw data_error(linear.module + " is stored as " + std::string(dtype_name(weight->dtype)) + " " + to_string(weight->shape) +
                       " in a layout this version does not read",
                   reader_.folder() + "/" + weight->file);
}

recipes::LinearScales StoredEncodings::scales(const Encoding& encoding, const layers::LinearSpec& linear) const {
  recipes::LinearScales scales;
  for (const auto& part : recipes::encoded_tensors(encoding, linear))
    if (part.kind != recipes::EncodedTensor::Kind::kRows) recipes::read_constant(part, reader_.read(part.tensor.name), scales);
  return scales;
}

recipes::KvFormats stored_kv_formats(const checkpoint::Json& config, const layers::ModelSpec& model) {
  const Json words = config.value("quantization_config", Json::object());
  if (!words.is_object()) return recipes::uniform_kv_formats(model, recipes::KvFormat::kNone);
  const auto found = words.find("kv_cache_quantized_layers");
  if (found == words.end()) return recipes::uniform_kv_formats(model, format_of_scheme(words.value("kv_cache_scheme", Json(nullptr))));
  recipes::KvFormats formats = recipes::uniform_kv_formats(model, recipes::KvFormat::kNone);
  for (const auto& [module, entry] : found->items()) {
    const auto format = entry.is_object() ? recipes::find_kv_algo(entry.value("quant_algo", "")) : std::nullopt;
    if (!format || formats.count(module) == 0)
      throw data_error(formats.count(module) == 0 ? module + " is no attention block of this model"
                                                  : "the KV cache is of a format this version does not read: " + entry.dump(),
                       "config.json  kv_cache_quantized_layers");
    formats[module] = *format;
  }
  return formats;
}

recipes::KvScales read_kv_scales(const checkpoint::Reader& reader, recipes::Dialect dialect, recipes::KvFormat format,
                                 const layers::AttentionHeads& attention) {
  std::vector<Tensor> stored;
  for (const auto& expected : recipes::kv_tensors(dialect, format, attention)) {
    const checkpoint::TensorEntry* entry = reader.find(expected.name);
    if (!entry || entry->dtype != expected.dtype || entry->shape != expected.shape)
      throw data_error(expected.name + (entry ? " is not stored as its KV cache format says" : " is missing") +
                           ", but config.json says that the KV cache is quantized",
                       reader.folder());
    stored.push_back(reader.read(expected.name));
  }
  recipes::KvScales scales{*stored[0].data<float>(), *stored[1].data<float>(), {}, {}};
  if (stored.size() > 2) {
    scales.key_bias = stored[2];
    scales.value_bias = stored[3];
  }
  return scales;
}

}  // namespace ptq::runner
