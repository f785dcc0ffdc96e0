#include "recipes/observer.h"

#include <algorithm>

#include "kernels/ops.h"

namespace ptq::recipes {

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
}

std::vector<ExpertStatistics>& Observer::experts_of(const layers::LayerSpec& layer) {
  auto& experts = maxima_[layer.index].experts;
  if (experts.empty()) experts.resize(layer.moe()->experts.size());
  return experts;
}

void Observer::expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, bool forced) {
  const kernels::Amax found = kernels::amax(x);
  const layers::LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
  if (found.non_finite_row >= 0 && !error_)
    error_ = data_error("NaN or Inf in the activations: input of " + spec.module + ", expert " + std::to_string(expert), layer.prefix,
                        "the weights overflow on this text: check the checkpoint");
  ExpertStatistics& seen = experts_of(layer)[static_cast<size_t>(expert)];
  float& kept = spec.feeds_down ? seen.up_input_amax : seen.down_input_amax;
  kept = std::max(kept, found.value);
  if (forced && spec.feeds_down) seen.forced += x.dim(0);
}

void Observer::count(const layers::LayerSpec& layer, const std::vector<int64_t>& tokens) {
  auto& experts = experts_of(layer);
  for (size_t e = 0; e < tokens.size(); ++e) experts[e].tokens += tokens[e];
}

void Observer::key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch& batch) {
  LayerMaxima& kept = maxima_[layer.index];
  kept.key_amax = std::max(kept.key_amax, observe(k, layer, "keys", batch));
  kept.value_amax = std::max(kept.value_amax, observe(v, layer, "values", batch));
}

}  // namespace ptq::recipes
