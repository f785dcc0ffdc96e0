#pragma once
// The recipe's parallel section laid over the ranks of this job.

#include "layers/model_spec.h"
#include "parallel/mesh.h"
#include "recipes/recipe.h"

namespace ptq::runner {

/// data is what tensor and pipeline leave of `ranks`. Throws a user Error, naming the key, for numbers that do not divide one another or
/// that this model cannot be split by: heads, layers, experts.
parallel::MeshShape mesh_shape(const layers::ModelSpec& model, const recipes::Recipe& recipe, int ranks);

}  // namespace ptq::runner
