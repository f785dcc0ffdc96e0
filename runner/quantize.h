#pragma once
// The main job: a recipe in, a verified quantized checkpoint out.

#include <string>
#include <vector>

#include "parallel/session.h"
#include "runner/run_log.h"

namespace ptq::runner {

struct QuantizeOptions {
  std::string recipe_path;
  std::vector<std::string> overrides;
  Verbosity verbosity = Verbosity::kNormal;
  bool restart = false;  ///< an unfinished run's progress is given up
};

/// Collective over the session's world. Returns when the output folder is in place (or was there already, complete, from the same
/// recipe). An unfinished run of the same recipe, source, data and program is gone on with. Throws Errors, agreed over all ranks wherever
/// they can be.
void quantize(parallel::Session& session, const QuantizeOptions& options);

}  // namespace ptq::runner
