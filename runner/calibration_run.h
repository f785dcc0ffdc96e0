#pragma once
// One pass of calibration over a model: statistics, scales, and every tensor of the output written into its shards.

#include <map>
#include <string>
#include <vector>

#include "runner/calibration.h"
#include "runner/run_log.h"

namespace ptq::runner {

/// What a pass takes. References outlive the run.
struct CalibrationInput {
  const SourceModel& source;
  const recipes::Recipe& recipe;
  const ExportPlan& plan;
  const std::vector<std::vector<int32_t>>& rows;  ///< none: no forward pass
  std::string folder;                             ///< for the shards, and ptq-runner/ with its statistics; it is there
  std::string progress;                           ///< folder of this run's progress
  std::map<std::string, std::string> attributes;  ///< of the statistics
  ReusedStatistics* reused = nullptr;             ///< instead of a forward pass
  int64_t host_memory = 0;                        ///< bytes this rank may use
};

/// Runs it and syncs what was written, from where `progress` says that an earlier run of the same input stopped. The same on every rank.
/// Throws user Errors for experts that too few tokens reach, data Errors, and what writing throws. Collective over the world of `mesh`.
CalibrationResult run_calibration(const CalibrationInput& input, const parallel::Mesh& mesh, RunLog& log);

}  // namespace ptq::runner
