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
  /// `by_channel`: keys and values are kept by channel as well. `counts`: the magnitudes of inputs are counted (kernels::count_magnitudes).
  explicit Observer(bool by_channel = false, bool counts = false) : by_channel_(by_channel), counts_(counts) {}
  void linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch& batch) override;
  void key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch& batch) override;
  void expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, const layers::ExpertVisits& visits) override;
  /// Tokens of this rank that the router sent to each expert of the layer.
  void count(const layers::LayerSpec& layer, const std::vector<int64_t>& tokens);

  static constexpr int kExpertsUp = -1, kExpertsDown = -2;
  struct LayerMaxima {
    std::map<int, float> input_amax;
    std::map<int, std::vector<int64_t>> magnitudes;  ///< by input group; under kExpertsUp and kExpertsDown of all experts together
    std::vector<ExpertStatistics> experts;           ///< of this rank's experts the maxima, of its tokens the counts
    float key_amax = -1, value_amax = -1;
    ChannelStatistics key_channels, value_channels;  ///< of this rank's kv heads and tokens
  };
  /// By layer index.
  const std::map<int64_t, LayerMaxima>& maxima() const { return maxima_; }
  const std::optional<Error>& error() const { return error_; }

 private:
  std::vector<ExpertStatistics>& experts_of(const layers::LayerSpec& layer);
  float observe(const Tensor& x, const layers::LayerSpec& layer, const std::string& what, const layers::Batch& batch);

  void count_magnitudes(const layers::LayerSpec& layer, int key, const Tensor& x);

  bool by_channel_, counts_;
  std::map<int64_t, LayerMaxima> maxima_;
  std::optional<Error> error_;
};

}  // namespace ptq::recipes
