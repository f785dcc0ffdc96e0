#include "recipes/formats.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace ptq::recipes {

namespace {

constexpr float kE4M3 = 448, kE2M1 = 6, kInt8 = 127;

struct DialectName {
  Dialect dialect;
  const char* name;
};
constexpr DialectName kDialects[] = {
    {Dialect::kModelOpt, "modelopt"}, {Dialect::kCompressedTensors, "compressed-tensors"}, {Dialect::kDeepseekFp8, "deepseek-fp8"}};

/// The entry that is called `name`. Throws a user Error with all names for any other.
template <class List>
const typename List::value_type& find_named(const List& list, const char* what, const std::string& name, const std::string& where) {
  std::string names;
  for (const auto& entry : list) {
    if (entry.name == name) return entry;
    names += (names.empty() ? "" : ", ") + entry.name;
  }
  throw user_error(std::string(what) + " '" + name + "' is unknown", where, "use one of: " + names);
}

}  // namespace

const std::vector<FormatInfo>& all_formats() {
  static const std::vector<FormatInfo> formats{
      {Format::kNone, "none", "", false, false, false, 0, 16},
      {Format::kFp8, "fp8", "FP8", true, true, false, 0, 8, kE4M3, kE4M3},
      {Format::kFp8Channels, "fp8_pc_pt", "FP8_PER_CHANNEL_PER_TOKEN", true, false, false, 0, 8},
      {Format::kFp8Blocks, "fp8_pb_wo", "fp8_pb_wo", false, false, false, 0, 8 + 32.0 / (128 * 128)},
      {Format::kInt8, "int8", "W8A8_SQ_PER_CHANNEL", true, true, false, 0, 8, kInt8, kInt8},
      {Format::kInt8WeightOnly, "int8_wo", "W8A16", false, false, false, 0, 8},
      {Format::kInt4, "int4", "W4A16_AWQ", false, false, false, 128, 4.25},
      {Format::kInt4Fp8, "w4a8", "W4A8_AWQ", true, true, true, 128, 4.25, kE4M3, kE4M3},
      {Format::kNvfp4, "nvfp4", "NVFP4", true, true, true, 16, 4.5, kE2M1, kE2M1 * kE4M3},
      {Format::kNvfp4WeightOnly, "w4a16_nvfp4", "W4A16_NVFP4", false, false, true, 16, 4.5},
      {Format::kMxfp8, "mxfp8", "MXFP8", true, false, false, 32, 8.25},
      {Format::kMxfp4, "mxfp4", "mxfp4", true, false, false, 32, 4.25},
  };
  return formats;
}

const FormatInfo& info(Format format) { return all_formats()[static_cast<size_t>(format)]; }

const FormatInfo& find_format(const std::string& name, const std::string& where) {
  const auto is_named = [&](const auto& entry) { return entry.name == name; };
  const auto preset = std::find_if(all_presets().begin(), all_presets().end(), is_named);
  if (preset != all_presets().end() && std::none_of(all_formats().begin(), all_formats().end(), is_named))
    throw user_error("number format '" + name + "' is unknown: it is a preset", where,
                     "write preset: " + name + ", or format: " + preset->format + " and method: " + preset->method);
  return find_named(all_formats(), "number format", name, where);
}

const std::vector<Preset>& all_presets() {
  static const std::vector<Preset> presets{
      {"none", "none", "minmax"},
      {"fp8", "fp8", "minmax"},
      {"fp8_pb_wo", "fp8_pb_wo", "minmax"},
      {"fp8_pc_pt", "fp8_pc_pt", "minmax"},
      {"nvfp4", "nvfp4", "minmax"},
      {"nvfp4_awq", "nvfp4", "awq"},
      {"w4a16_nvfp4", "w4a16_nvfp4", "awq"},
      {"int8_sq", "int8", "smoothquant"},
      {"int8_wo", "int8_wo", "minmax"},
      {"int4_awq", "int4", "awq"},
      {"w4a8_awq", "w4a8", "awq"},
      {"mxfp8", "mxfp8", "minmax"},
      {"mxfp4", "mxfp4", "minmax"},
      {"auto", "none", "autoquantize"},
  };
  return presets;
}

const Preset& find_preset(const std::string& name, const std::string& where) { return find_named(all_presets(), "preset", name, where); }

std::string dialect_name(Dialect dialect) { return kDialects[static_cast<size_t>(dialect)].name; }

Dialect find_dialect(const std::string& name, const std::string& where) {
  for (const auto& entry : kDialects)
    if (name == entry.name) return entry.dialect;
  throw user_error("dialect '" + name + "' is unknown", where, "use one of: modelopt, compressed-tensors, deepseek-fp8");
}

}  // namespace ptq::recipes
