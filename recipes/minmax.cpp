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

}  // namespace

std::vector<LinearScales> minmax_scales(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions,
                                        const LayerStatistics& statistics, std::vector<ScaleNote>& notes) {
  std::vector<LinearScales> scales(layer.linears.size());
  for (size_t i = 0; i < layer.linears.size(); ++i) {
    const layers::LinearSpec& linear = layer.linears[i];
    const Format format = decisions.at(linear.module).format;
    if (format == Format::kNone) continue;
    float weight_amax = statistics.weight_amax[i];
    if (info(format).shares_weight_scale)
      for (size_t j = 0; j < layer.linears.size(); ++j)
        if (layer.linears[j].scale_group == linear.scale_group) weight_amax = std::max(weight_amax, statistics.weight_amax[j]);
    const float step = format == Format::kFp8 ? kE4M3Max : kE2M1Max * kE4M3Max;
    const float zero_means = format == Format::kFp8 ? kE4M3Max : kE2M1Max;
    scales[i].weight_scale = or_format_max(weight_amax, zero_means, linear.module, "the weight", notes) / step;
    if (info(format).quantizes_activations)
      scales[i].input_scale =
          or_format_max(statistics.input_amax.at(linear.input_group), zero_means, linear.module, "the input", notes) / step;
  }
  return scales;
}

float kv_scale(float amax, const std::string& module, std::vector<ScaleNote>& notes) {
  return or_format_max(amax, kE4M3Max, module, "the KV cache input", notes) / kE4M3Max;
}

}  // namespace ptq::recipes
