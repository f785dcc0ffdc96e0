#pragma once
// The calibration pass's eyes: maxima of what linears read and of keys and values, and where a NaN or Inf first appeared.

#include <map>
#include <optional>
#include <string>

#include "layers/layer.h"
#include "recipes/minmax.h"

namespace ptq::recipes {

/// Collects one window's statistics on one rank. Non-finite activations are remembered, not thrown: other ranks are in the middle of a
/// collective; error() is looked at where all ranks agree.
class Observer : public layers::LayerHooks {
 public:
  void linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch& batch) override;
  void key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch& batch) override;
  void expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, bool forced) override;
  /// Tokens of this rank that the router sent to each expert of the layer.
  void count(const layers::LayerSpec& layer, const std::vector<int64_t>& tokens);

  struct LayerMaxima {
    std::map<int, float> input_amax;
    std::vector<ExpertStatistics> experts;  ///< of this rank's experts the maxima, of its tokens the counts
    float key_amax = -1, value_amax = -1;
  };
  /// By layer index.
  const std::map<int64_t, LayerMaxima>& maxima() const { return maxima_; }
  const std::optional<Error>& error() const { return error_; }

 private:
  std::vector<ExpertStatistics>& experts_of(const layers::LayerSpec& layer);
  float observe(const Tensor& x, const layers::LayerSpec& layer, const std::string& what, const layers::Batch& batch);

  std::map<int64_t, LayerMaxima> maxima_;
  std::optional<Error> error_;
};

}  // namespace ptq::recipes
