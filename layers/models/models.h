#pragma once
// From a config.json to a ModelSpec: the list of families.

#include "layers/config.h"
#include "layers/model_spec.h"

namespace ptq::layers {

/// The model that the config describes. Throws a data Error for an architecture that is not in the list (prints the list), a missing key,
/// or a value this project does not support.
ModelSpec describe_model(const Config& config);

}  // namespace ptq::layers
