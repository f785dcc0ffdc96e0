#pragma once
// Min-max calibration: every scale puts the largest magnitude seen on the largest value of its format. Scales are f32 divisions.
// Source: the formulas of NVIDIA Model Optimizer's unified checkpoint (weight_scale = amax/448, weight_scale_2 = amax/(6·448), ...).

#include <map>
#include <string>
#include <vector>

#include "recipes/decisions.h"

namespace ptq::recipes {

/// What calibration saw of one routed expert.
struct ExpertStatistics {
  int64_t tokens = 0;                              ///< that the router sent to it
  int64_t forced = 0;                              ///< that only statistics were taken of
  float up_input_amax = -1, down_input_amax = -1;  ///< of what gate and up read, and down; -1: no token
};

/// Keys or values by channel, [kv_heads·head_dim]; empty where nobody asked.
struct ChannelStatistics {
  static constexpr double kOne = 0x1p24;   ///< sums count in steps of 2^-24: integers add up to the same in any order
  static constexpr double kMost = 0x1p40;  ///< steps that one token counts at most: 2^23 tokens of ±65536 still fit
  std::vector<int64_t> sums;               ///< over tokens
  std::vector<float> minima, maxima;
};

/// What calibration saw of one layer, merged over all ranks.
struct LayerStatistics {
  std::vector<float> weight_amax;         ///< per linear; stacked experts: of all of them
  std::vector<ExpertStatistics> experts;  ///< by expert; empty where the layer has none or nothing was observed
  std::map<int, float> input_amax;        ///< per input group; absent: not observed
  float key_amax = -1, value_amax = -1;   ///< after rope, whole layer; -1: not observed
  ChannelStatistics key_channels, value_channels;
  std::vector<float> value_channel_amax;  ///< [kv_heads·v_head_dim]; empty: not observed
};

/// A scale that had nothing to measure and why: listed in the log and the manifest, never silent.
struct ScaleNote {
  std::string module, note;
};

/// The scales of every linear of the layer, by index; of unquantized linears untouched defaults. An amax of 0 counts as the format's
/// largest value (scale 1, or 6/2688 for NVFP4's second level, 7/448 for W4A8's) and is noted.
/// Routed experts: gate and up share one weight scale in every format, and all experts of the layer one input_scale for gate and up and one
/// for down, from the largest amax of any: servers run a layer's experts as one kernel. So an expert that too few tokens reached has the
/// layer's scale (peer_max), never 0, NaN or a default.
std::vector<LinearScales> minmax_scales(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions,
                                        const LayerStatistics& statistics, std::vector<ScaleNote>& notes);
/// The per-tensor weight scale alone, from the amax of the whole scale group where it is shared; 1 for formats without one. Of W4A8 it is
/// the scale of its weights as FP8: their largest INT4 scale times 7/448.
float weight_scale(const Encoding& encoding, float amax, const std::string& module, std::vector<ScaleNote>& notes);
/// The per-tensor weight scale of one linear of a layer, from the amaxes of all linears that servers give one scale: those of its scale
/// group where the format or a routed expert's kernel has one for all. Notes nothing.
LinearScales weight_scales(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions,
                           const LayerStatistics& statistics, int linear);
/// The scale of what a linear reads, from its amax; 1 for formats without one.
float input_scale(const Encoding& encoding, float amax, const std::string& module, std::vector<ScaleNote>& notes);
/// amax/448 for a KV cache in FP8; 1 (noted) for amax 0.
float kv_scale(float amax, const std::string& module, std::vector<ScaleNote>& notes);

}  // namespace ptq::recipes
