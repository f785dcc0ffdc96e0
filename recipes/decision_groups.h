#pragma once
// What AutoQuantize decides about: groups of decoder linears that must have one format, and what every candidate would store for them.
// From the model and the recipe alone; scores are recipes/sensitivity.h, the choice is recipes/knapsack.h.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "layers/model_spec.h"
#include "recipes/knapsack.h"
#include "recipes/recipe.h"

namespace ptq::recipes {

/// The presets of quantization.autoquantize.formats in their order, and none, last where it is not among them.
std::vector<std::string> candidate_presets(const Recipe& recipe);
/// The recipe as it would be with this preset for all linears.
Recipe with_preset(const Recipe& recipe, const std::string& preset);

struct DecisionOption {
  int candidate = 0;  ///< index into the presets
  int64_t bits = 0;   ///< stored for the group's counted linears: every tensor of theirs, scales included
};

struct DecisionGroup {
  std::string name;                  ///< "model.layers.3.self_attn.q_proj,k_proj,v_proj", "model.layers.3.mlp.experts (384 linears)"
  std::vector<std::string> modules;  ///< in the order of the layer
  int64_t layer = 0;
  int64_t weights = 0;                  ///< of the linears that quantization.ignore does not match
  int64_t factor = 1;                   ///< cost of one bit: see decision_groups
  std::vector<DecisionOption> options;  ///< in the order of candidates; those that every linear can have
};

/// Groups in the order of their first linears. One group is: the linears of a layer that servers fuse; all routed experts of a layer, or,
/// with expert_granularity: expert, one of them. A group with an ignored linear has `none` alone, and only its other linears count. With
/// cost: active_moe, factors are in the proportion of top_k / experts for routed experts to 1 for others, as integers; else 1.
/// `source_bits` gives the bits of one weight as `none` stores the linear.
std::vector<DecisionGroup> decision_groups(const layers::ModelSpec& model, const Recipe& recipe,
                                           const std::function<int64_t(const layers::LinearSpec&)>& source_bits);

/// Groups with their scores [groups][options] as the knapsack takes them: cost = factor x bits.
std::vector<KnapsackGroup> knapsack_groups(const std::vector<DecisionGroup>& groups, const std::vector<std::vector<double>>& scores);
/// Bits per weight of a mix: cost over the sum of factor x weights. 0 without weights.
double effective_bits(const std::vector<DecisionGroup>& groups, int64_t cost);
/// The largest cost with at most so many bits per weight. Throws a user Error with `where` and the range that can be reached for a number
/// outside it: below the cheapest options of all groups or above the dearest; and where no linear is left to decide about.
int64_t budget_of(const std::vector<DecisionGroup>& groups, double effective_bits, const std::string& where);

}  // namespace ptq::recipes
