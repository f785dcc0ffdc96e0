#pragma once
// What a run's statistics depend on: model, data, and the keys of the recipe that say how the data passes through the model. They are
// attributes of its calibration.h5; statistics serve another recipe only where all of them are the same.

#include <map>
#include <string>

#include "recipes/recipe.h"

namespace ptq::runner {

/// The recipe's keys and their values as text.
std::map<std::string, std::string> calibration_keys(const recipes::Recipe& recipe);
/// Keys that the recipe does not write take their values from `attributes`. Throws a user Error for the first that it writes and that is
/// another there.
void adopt_calibration_keys(const std::map<std::string, std::string>& attributes, const std::string& path, recipes::Recipe& recipe);

/// The attributes of a run's calibration.h5, among them "run": a digest of all the others, by which its other files are known.
/// `tokens`, `rows`: of all ranks; 0 where no forward pass was made.
std::map<std::string, std::string> run_attributes(const recipes::Recipe& recipe, const std::string& source_fingerprint,
                                                  const std::string& data_fingerprint, int64_t rows, int64_t tokens);

}  // namespace ptq::runner
