#pragma once
// The calibration text as token rows.

#include <string>
#include <vector>

#include "recipes/recipe.h"
#include "runner/source_model.h"

namespace ptq::runner {

/// The rows that the recipe's calibration section asks for, all of them on every rank. Throws user and data Errors.
std::vector<std::vector<int32_t>> read_rows(const recipes::Recipe& recipe, const SourceModel& source);
/// SHA-256 over the rows.
std::string rows_fingerprint(const std::vector<std::vector<int32_t>>& rows);

}  // namespace ptq::runner
