#pragma once
// What linears of a layer read, over all tokens of all ranks: asked for by methods that search, and answered alike by the forward pass of
// this run (ActivationCollector) and by the statistics of an earlier one.

#include "layers/model_spec.h"
#include "recipes/smoothing.h"

namespace ptq::recipes {

/// What is to be kept of one input group.
struct InputNeeds {
  bool channels = false;  ///< mean and largest magnitude of every channel
  bool gram = false;
  bool sample = false;  ///< tokens, evenly spread
};

class InputSource {
 public:
  virtual ~InputSource() = default;
  /// The group's magnitudes, which stay. Collective over the stage.
  virtual InputStatistics channels(const layers::LayerSpec& layer, int input_group) = 0;
  /// The group's magnitudes and what is needed besides, once: its memory is given up. Collective over the stage.
  virtual InputStatistics take(const layers::LayerSpec& layer, int input_group, const InputNeeds& needs) = 0;
};

}  // namespace ptq::recipes
