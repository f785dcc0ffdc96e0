#include "recipes/minmax.h"

#include <algorithm>

namespace ptq::recipes {

namespace {

constexpr float kE4M3Max = 448.0f, kE2M1Max = 6.0f, kInt4Max = 7.0f;

float or_format_max(float amax, float format_max, const std::string& module, const char* what, std::vector<ScaleNote>& notes) {
  if (amax > 0) return amax;
  notes.push_back({module, std::string(what) + " is all zeros: its scale is the format's default"});
  return format_max;
}

/// The largest magnitude that any expert's gate and up (feeds_down) or down read.
float experts_input_amax(const LayerStatistics& statistics, bool feeds_down, const std::string& module) {
  float amax = -1;
  for (const auto& expert : statistics.experts) amax = std::max(amax, feeds_down ? expert.up_input_amax : expert.down_input_amax);
  // Every token visits some expert, so a calibrated layer always has one.
  if (amax < 0) throw bug("no expert of " + module + " has seen a token, but its format needs an input scale");
  return amax;
}

/// Experts fuse gate and up before they are quantized, so that those share a scale even in FP8.
bool shares_weight_scale(const Encoding& encoding, const layers::LinearSpec& linear) {
  return info(encoding.format).shares_weight_scale || linear.is_routed();
}

}  // namespace

float weight_scale(const Encoding& encoding, float amax, const std::string& module, std::vector<ScaleNote>& notes) {
  switch (encoding.format) {
    case Format::kFp8:
      return or_format_max(amax, kE4M3Max, module, "the weight", notes) / kE4M3Max;
    case Format::kNvfp4:
    case Format::kNvfp4WeightOnly:
      return or_format_max(amax, kE2M1Max, module, "the weight", notes) / (kE2M1Max * kE4M3Max);
    case Format::kInt4Fp8:
      return or_format_max(amax, kInt4Max, module, "the weight", notes) / kInt4Max * kInt4Max / kE4M3Max;
    default:
      return 1.0f;
  }
}

LinearScales weight_scales(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions,
                           const LayerStatistics& statistics, int linear) {
  const layers::LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
  const Encoding& encoding = decisions.at(spec.module).encoding;
  float amax = statistics.weight_amax[static_cast<size_t>(linear)];
  if (shares_weight_scale(encoding, spec))
    for (size_t i = 0; i < layer.linears.size(); ++i)
      if (layer.linears[i].scale_group == spec.scale_group) amax = std::max(amax, statistics.weight_amax[i]);
  std::vector<ScaleNote> unnoted;
  LinearScales scales;
  scales.weight_scale = weight_scale(encoding, amax, spec.module, unnoted);
  return scales;
}

float input_scale(const Encoding& encoding, float amax, const std::string& module, std::vector<ScaleNote>& notes) {
  if (!has_input_scale(encoding)) return 1.0f;
  const FormatInfo& format = info(encoding.format);
  return or_format_max(amax, format.input_zero_means, module, "the input", notes) / format.input_step;
}

std::vector<LinearScales> minmax_scales(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions,
                                        const LayerStatistics& statistics, std::vector<ScaleNote>& notes) {
  std::map<int, float> group_amax;  // by scale group
  for (size_t i = 0; i < layer.linears.size(); ++i) {
    float& amax = group_amax.try_emplace(layer.linears[i].scale_group, 0.0f).first->second;
    amax = std::max(amax, statistics.weight_amax[i]);
  }
  std::map<bool, float> experts_input;  // by feeds_down; found, and noted if it is 0, once for all experts
  std::vector<LinearScales> scales(layer.linears.size());
  for (size_t i = 0; i < layer.linears.size(); ++i) {
    const layers::LinearSpec& linear = layer.linears[i];
    const Encoding& encoding = decisions.at(linear.module).encoding;
    if (!encoding.is_quantized()) continue;
    const FormatInfo& format = info(encoding.format);
    const float weight_amax = shares_weight_scale(encoding, linear) ? group_amax.at(linear.scale_group) : statistics.weight_amax[i];
    scales[i].weight_scale = weight_scale(encoding, weight_amax, linear.module, notes);
    if (!has_input_scale(encoding)) continue;
    if (!linear.is_routed()) {
      scales[i].input_scale =
          or_format_max(statistics.input_amax.at(linear.input_group), format.input_zero_means, linear.module, "the input", notes) /
          format.input_step;
      continue;
    }
    auto found = experts_input.find(linear.feeds_down);
    if (found == experts_input.end()) {
      const float amax = or_format_max(experts_input_amax(statistics, linear.feeds_down, linear.module), format.input_zero_means,
                                       linear.module, "the input of all experts", notes);
      found = experts_input.emplace(linear.feeds_down, amax).first;
    }
    scales[i].input_scale = found->second / format.input_step;
  }
  return scales;
}

float kv_scale(float amax, const std::string& module, std::vector<ScaleNote>& notes) {
  return or_format_max(amax, kE4M3Max, module, "the KV cache input", notes) / kE4M3Max;
}

}  // namespace ptq::recipes
