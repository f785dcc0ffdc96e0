#include "recipes/smoothing_plan.h"

#include <algorithm>
#include <cmath>

#include "recipes/weight_solver.h"

namespace ptq::recipes {

namespace {

using Place = GroupPlan::Place;

class Planner {
 public:
  Planner(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions, const Recipe& recipe,
          std::vector<ScaleNote>& notes)
      : layer_(layer), decisions_(decisions), recipe_(recipe), notes_(notes) {}

  LayerSmoothing plan() {
    LayerSmoothing smoothing;
    if (recipe_.method != "awq" && recipe_.method != "smoothquant") return smoothing;
    for (const layers::SmoothingGroup& group : layers::smoothing_groups(layer_)) {
      std::vector<int> readers = group.linears;
      if (group.feeds_experts)
        for (size_t i = 0; i < layer_.linears.size(); ++i)
          if (layer_.linears[i].is_routed() && layer_.linears[i].feeds_down) readers.push_back(static_cast<int>(i));
      if (std::none_of(readers.begin(), readers.end(), [&](int i) { return is_searched(i); })) continue;
      GroupPlan plan;
      plan.group = group;
      plan.rule = rule();
      plan.searched = recipe_.method == "awq" || recipe_.smoothquant.alpha_auto;
      plan.place = place_of(readers, group.fold);
      plan.octaves = octaves_of(group.fold);
      const bool own = std::any_of(group.linears.begin(), group.linears.end(), [&](int i) { return is_searched(i); });
      plan.needs.channels = true;
      plan.needs.gram = own && recipe_.method == "awq";
      plan.needs.sample = own && plan.searched && std::any_of(group.linears.begin(), group.linears.end(), [&](int i) {
                            return is_searched(i) && counts_activations(encoding(i).format);
                          });
      smoothing.groups.push_back(std::move(plan));
      smoothing.experts = smoothing.experts || group.feeds_experts;
    }
    const layers::MoeSpec* moe = layer_.moe();
    smoothing.experts = smoothing.experts && moe && is_searched(moe->experts.front().down);
    if (smoothing.experts) {
      const layers::Fold fold = layers::expert_fold(layer_, 0);
      smoothing.experts_down = place_of({moe->experts.front().down}, fold);
      smoothing.octaves = octaves_of(fold);
    }
    return smoothing;
  }

 private:
  SmoothingRule rule() const { return recipe_.method == "awq" ? SmoothingRule::kAwq : SmoothingRule::kSmoothQuant; }
  const Encoding& encoding(int linear) const { return decisions_.at(layer_.linears[static_cast<size_t>(linear)].module).encoding; }
  bool is_searched(int linear) const {
    const Format format = encoding(linear).format;
    return recipe_.method == "awq" ? is_solvable(format) : format == Format::kInt8;
  }

  /// A row that takes the root of a factor takes a power of two only from a power of four.
  int octaves_of(const layers::Fold& fold) const {
    return !recipe_.awq.powers_of_two ? 0 : fold.kind == layers::Fold::Kind::kRows ? static_cast<int>(std::lround(1 / fold.power)) : 1;
  }

  Place place_of(const std::vector<int>& readers, const layers::Fold& fold) {
    if (!recipe_.awq.smooth) return Place::kNone;
    // SmoothQuant in ModelOpt's layout stores all of its factors.
    const bool stores =
        !recipe_.awq.powers_of_two && recipe_.dialect == "modelopt" && (recipe_.method == "smoothquant" || recipe_.fold() == "none");
    const bool norms_only = recipe_.fold() == "modelopt";
    if (stores || (norms_only && fold.kind != layers::Fold::Kind::kNorm)) return Place::kStored;
    const std::string& module = layer_.linears[static_cast<size_t>(readers.front())].module;
    if (fold.kind == layers::Fold::Kind::kNone) {
      notes_.push_back({module, "its input is not smoothed: nothing before it can take the factors"});
      return Place::kNone;
    }
    if (recipe_.awq.powers_of_two && fold.kind == layers::Fold::Kind::kNorm && fold.norm.kind == layers::NormSpec::Kind::kLayerNorm1p) {
      notes_.push_back({module, "its input is not smoothed: a norm around one does not scale exactly"});
      return Place::kNone;
    }
    std::vector<int> changed = readers;
    if (fold.kind == layers::Fold::Kind::kRows) changed.push_back(fold.linear);
    for (const int linear : changed)
      if (!encoding(linear).is_quantized()) {
        notes_.push_back({module, "its input is not smoothed: " + layer_.linears[static_cast<size_t>(linear)].module +
                                      " is not quantized and would have to change with it"});
        return Place::kNone;
      }
    return Place::kFolded;
  }

  const layers::LayerSpec& layer_;
  const std::map<std::string, Decision>& decisions_;
  const Recipe& recipe_;
  std::vector<ScaleNote>& notes_;
};

}  // namespace

const GroupPlan* LayerSmoothing::find(int input_group) const {
  const auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& plan) { return plan.group.input_group == input_group; });
  return found == groups.end() ? nullptr : &*found;
}

LayerSmoothing plan_smoothing(const layers::LayerSpec& layer, const std::map<std::string, Decision>& decisions, const Recipe& recipe,
                              std::vector<ScaleNote>& notes) {
  return Planner(layer, decisions, recipe, notes).plan();
}

void decide_stored_factors(const layers::ModelSpec& model, const Recipe& recipe, std::map<std::string, Decision>& decisions) {
  std::vector<ScaleNote> told_later;
  for (const auto& layer : model.layers) {
    const LayerSmoothing smoothing = plan_smoothing(layer, decisions, recipe, told_later);
    for (const GroupPlan& plan : smoothing.groups) {
      if (plan.place != Place::kStored) continue;
      for (const int linear : plan.group.linears) {
        Encoding& encoding = decisions.at(layer.linears[static_cast<size_t>(linear)].module).encoding;
        encoding.pre_quant_scale = encoding.is_quantized();
      }
    }
    if (!smoothing.experts) continue;
    const GroupPlan* inputs = nullptr;
    for (const GroupPlan& plan : smoothing.groups)
      if (plan.group.feeds_experts) inputs = &plan;
    for (const auto& linear : layer.linears)
      if (linear.is_routed() && (linear.feeds_down ? inputs && inputs->place == Place::kStored : smoothing.experts_down == Place::kStored))
        decisions.at(linear.module).encoding.pre_quant_scale = true;
  }
}

}  // namespace ptq::recipes
