#include "recipes/minmax.h"

#include <algorithm>

namespace ptq::recipes {

namespace {

constexpr float kE4M3Max = 448.0f, kE2M1Max = 6.0f;

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

/// The amax that an input of zeros is taken for, and what an amax is divided by.
float zero_means(Format format) { return format == Format::kFp8 ? kE4M3Max : kE2M1Max; }
float step_of(Format format) { return format == Format::kFp8 ? kE4M3Max : kE2M1Max * kE4M3Max; }

}  // namespace

float weight_scale(Format format, float amax, const std::string& module, std::vector<ScaleNote>& notes) {
  return or_format_max(amax, zero_means(format), module, "the weight", notes) / step_of(format);
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
    const Format format = decisions.at(linear.module).format;
    if (format == Format::kNone) continue;
    // Experts fuse gate and up before they are quantized, so that those share a scale even in FP8.
    const bool shares_scale = info(format).shares_weight_scale || linear.is_routed();
    const float weight_amax = shares_scale ? group_amax.at(linear.scale_group) : statistics.weight_amax[i];
    scales[i].weight_scale = weight_scale(format, weight_amax, linear.module, notes);
    if (!info(format).quantizes_activations) continue;
    if (!linear.is_routed()) {
      scales[i].input_scale =
          or_format_max(statistics.input_amax.at(linear.input_group), zero_means(format), linear.module, "the input", notes) /
          step_of(format);
      continue;
    }
    auto found = experts_input.find(linear.feeds_down);
    if (found == experts_input.end()) {
      const float amax = or_format_max(experts_input_amax(statistics, linear.feeds_down, linear.module), zero_means(format), linear.module,
                                       "the input of all experts", notes);
      found = experts_input.emplace(linear.feeds_down, amax).first;
    }
    scales[i].input_scale = found->second / step_of(format);
  }
  return scales;
}

float kv_scale(float amax, const std::string& module, std::vector<ScaleNote>& notes) {
  return or_format_max(amax, kE4M3Max, module, "the KV cache input", notes) / kE4M3Max;
}

}  // namespace ptq::recipes
