#pragma once
// Where a recipe smooths: which groups of linears, by which rule, and where their factors go. Decided from the model and the recipe alone,
// before any data is seen, because the tensors of the output follow from it.

#include <map>
#include <string>
#include <vector>

#include "layers/model_spec.h"
#include "recipes/activation_collector.h"
#include "recipes/decisions.h"
#include "recipes/minmax.h"
#include "recipes/smoothing.h"

namespace ptq::recipes {

/// One group of a layer whose weights are searched.
struct GroupPlan {
  /// What becomes of the factors. kNone: there are none, only scales and codes are searched.
  enum class Place { kNone, kFolded, kStored };
  layers::SmoothingGroup group;
  SmoothingRule rule = SmoothingRule::kAwq;
  Place place = Place::kFolded;
  bool searched = true;  ///< the exponent; else smoothquant.alpha
  int octaves = 0;       ///< see FactorLimits
  InputNeeds needs;
};

/// One layer's smoothing; empty where the recipe has none.
struct LayerSmoothing {
  std::vector<GroupPlan> groups;  ///< consumers first
  bool experts = false;           ///< routed experts take part: their inputs with a group's, their down projections by themselves
  GroupPlan::Place experts_down = GroupPlan::Place::kNone;  ///< what becomes of the factors of their down projections
  int octaves = 0;                                          ///< of those factors
  const GroupPlan* find(int input_group) const;
};

/// Plans one layer. Linears that are not quantized, or the rounding of a norm that they read too, leave a group unsmoothed; the reason is
/// added to `notes`.
LayerSmoothing plan_smoothing(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions, const Recipe& recipe,
                              std::vector<ScaleNote>& notes);

/// Sets Encoding::pre_quant_scale of every linear whose factors are stored, by the plans of all layers.
void decide_stored_factors(const layers::ModelSpec& model, const Recipe& recipe, std::map<std::string, Decision>& decisions);

}  // namespace ptq::recipes
