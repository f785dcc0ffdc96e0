#pragma once
// What a run leaves behind beside the model: report.json and manifest.json, from what all ranks saw.

#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "recipes/coverage.h"
#include "recipes/minmax.h"
#include "recipes/recipe.h"
#include "runner/export_plan.h"
#include "runner/layer_solver.h"

namespace ptq::runner {

struct RunRecord {
  std::string fingerprint, data_fingerprint;
  std::string reused;  ///< path of the statistics; "": this run's own
  int64_t rows = 0;    ///< of calibration
  parallel::MeshShape shape;
  std::vector<recipes::ScaleNote> notes;
  std::vector<recipes::LayerCoverage> coverage;  ///< of mixtures of experts, by layer
  std::vector<GroupChoice> choices;              ///< of smoothing, in the order of layers
  checkpoint::Json autoquantize;                 ///< what AutoQuantize says of its choice; null: nothing was chosen
  std::vector<std::string> ignored;              ///< SourceModel::ignored
  int64_t verified_checks = 0;
};

/// Is there anything that report.json would say?
bool has_report(const RunRecord& record);
checkpoint::Json run_report(const recipes::Recipe& recipe, const RunRecord& record);
/// Without the files' sums.
checkpoint::Json run_manifest(const recipes::Recipe& recipe, const SourceModel& source, const ExportPlan& plan, const RunRecord& record);

}  // namespace ptq::runner
