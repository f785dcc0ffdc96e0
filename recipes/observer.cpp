#include "recipes/observer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::recipes {

namespace {

/// x [T, C] f32, finite.
void add_tokens(const Tensor& x, ChannelStatistics& channels) {
  const auto width = static_cast<size_t>(x.dim(1));
  if (channels.sums.empty()) {
    channels.sums.assign(width, 0);
    channels.minima.assign(width, std::numeric_limits<float>::max());
    channels.maxima.assign(width, std::numeric_limits<float>::lowest());
  }
  const float* row = x.data<float>();
  for (int64_t t = 0; t < x.dim(0); ++t, row += width)
    for (size_t c = 0; c < width; ++c) {
      const double steps = static_cast<double>(row[c]) * ChannelStatistics::kOne;
      channels.sums[c] += std::llrint(std::clamp(steps, -ChannelStatistics::kMost, ChannelStatistics::kMost));
      channels.minima[c] = std::min(channels.minima[c], row[c]);
      channels.maxima[c] = std::max(channels.maxima[c], row[c]);
    }
}

}  // namespace

float Observer::observe(const Tensor& x, const layers::LayerSpec& layer, const std::string& what, const layers::Batch& batch) {
  const kernels::Amax found = kernels::amax(x);
  if (found.non_finite_row >= 0 && !error_)
    error_ =
        data_error("NaN or Inf in the activations: " + what + ", sample " + std::to_string(batch.row_of(found.non_finite_row)),
                   layer.prefix, "the weights overflow on this text: check the checkpoint, or take the sample out of calibration.data");
  return found.value;
}

void Observer::linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch& batch) {
  const auto members = layer.input_group(input_group);
  const float amax = observe(x, layer, "input of " + layer.linears[static_cast<size_t>(members.front())].module, batch);
  float& kept = maxima_[layer.index].input_amax[input_group];
  kept = std::max(kept, amax);
  count_magnitudes(layer, input_group, x);
}

void Observer::count_magnitudes(const layers::LayerSpec& layer, int key, const Tensor& x) {
  if (!counts_) return;
  std::vector<int64_t>& counts = maxima_[layer.index].magnitudes[key];
  counts.resize(kernels::kMagnitudeBins, 0);
  kernels::count_magnitudes(x, counts);
}

std::vector<ExpertStatistics>& Observer::experts_of(const layers::LayerSpec& layer) {
  auto& experts = maxima_[layer.index].experts;
  if (experts.empty()) experts.resize(layer.moe()->experts.size());
  return experts;
}

void Observer::expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, const layers::ExpertVisits& visits) {
  const kernels::Amax found = kernels::amax(x);
  const layers::LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
  if (found.non_finite_row >= 0 && !error_)
    error_ = data_error("NaN or Inf in the activations: input of " + spec.module + ", expert " + std::to_string(expert), layer.prefix,
                        "the weights overflow on this text: check the checkpoint");
  ExpertStatistics& seen = experts_of(layer)[static_cast<size_t>(expert)];
  float& kept = spec.feeds_down ? seen.up_input_amax : seen.down_input_amax;
  kept = std::max(kept, found.value);
  if (visits.forced && spec.feeds_down) seen.forced += x.dim(0);
  if (!visits.forced) count_magnitudes(layer, spec.feeds_down ? kExpertsUp : kExpertsDown, x);
}

void Observer::count(const layers::LayerSpec& layer, const std::vector<int64_t>& tokens) {
  auto& experts = experts_of(layer);
  for (size_t e = 0; e < tokens.size(); ++e) experts[e].tokens += tokens[e];
}

void Observer::key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch& batch) {
  LayerMaxima& kept = maxima_[layer.index];
  kept.key_amax = std::max(kept.key_amax, observe(k, layer, "keys", batch));
  kept.value_amax = std::max(kept.value_amax, observe(v, layer, "values", batch));
  if (!by_channel_ || error_) return;
  add_tokens(k, kept.key_channels);
  add_tokens(v, kept.value_channels);
}

}  // namespace ptq::recipes
