#include "runner/mesh_shape.h"

#include <fmt/format.h>

#include "layers/tensor_slices.h"

namespace ptq::runner {

namespace {

void check_expert_ranks(const layers::ModelSpec& model, const recipes::Recipe& recipe) {
  if (recipe.expert == 1) return;
  int64_t fewest = 0;
  for (const auto& layer : model.layers)
    if (const auto* moe = layer.moe())
      if (const auto experts = static_cast<int64_t>(moe->experts.size()); fewest == 0 || experts < fewest) fewest = experts;
  if (fewest == 0)
    throw user_error("parallel.expert = " + std::to_string(recipe.expert) + ", but " + model.family + " has no routed experts",
                     recipe.where("parallel.expert"), "leave parallel.expert out");
  if (recipe.expert > fewest)
    throw user_error(fmt::format("there are more expert ranks ({}) than experts in a layer ({})", recipe.expert, fewest),
                     recipe.where("parallel.expert"), "lower parallel.expert to at most " + std::to_string(fewest));
}

}  // namespace

parallel::MeshShape mesh_shape(const layers::ModelSpec& model, const recipes::Recipe& recipe, int ranks) {
  const int64_t each = recipe.tensor * recipe.pipeline;
  if (ranks % each != 0)
    throw user_error(
        fmt::format("tensor {} × pipeline {} = {} does not divide the {} rank(s) of this job", recipe.tensor, recipe.pipeline, each, ranks),
        recipe.where(recipe.tensor > 1 ? "parallel.tensor" : "parallel.pipeline"),
        "start a multiple of " + std::to_string(each) + " ranks");
  layers::check_tensor_ranks(model, recipe.tensor);
  const auto layers = static_cast<int64_t>(model.layers.size());
  if (recipe.pipeline > layers)
    throw user_error(fmt::format("there are more pipeline ranks ({}) than layers ({})", recipe.pipeline, layers),
                     recipe.where("parallel.pipeline"), "lower parallel.pipeline");
  check_expert_ranks(model, recipe);
  const int64_t stage = ranks / recipe.pipeline;
  if (stage % recipe.expert != 0)
    throw user_error(fmt::format("expert {} does not divide the {} data × tensor rank(s) of a pipeline stage", recipe.expert, stage),
                     recipe.where("parallel.expert"), "choose a divisor of " + std::to_string(stage));
  return {static_cast<int>(ranks / each), static_cast<int>(recipe.pipeline), static_cast<int>(recipe.tensor),
          static_cast<int>(recipe.expert)};
}

}  // namespace ptq::runner
