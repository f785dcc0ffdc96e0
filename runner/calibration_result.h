#pragma once
// What a calibration run tells beside the tensors it writes. Every rank knows some of it, layer by layer; together, and as the run goes on,
// it becomes the same on all ranks, and can be kept in a file.

#include <string>
#include <vector>

#include "checkpoint/stats_file.h"
#include "parallel/communicator.h"
#include "recipes/coverage.h"
#include "recipes/minmax.h"
#include "runner/folded_reader.h"
#include "runner/layer_solver.h"

namespace ptq::runner {

struct CalibrationResult {
  checkpoint::Stats statistics;                  ///< attributes and links are not kept
  std::vector<recipes::ScaleNote> notes;         ///< by module, each once
  std::vector<recipes::LayerCoverage> coverage;  ///< of mixtures of experts, by layer
  std::vector<GroupChoice> choices;              ///< of smoothing, in the order of layers
  FoldExponents folds;                           ///< where the recipe's factors are powers of two

  /// Adds what another rank, or a later part of the run, knows.
  void add(const CalibrationResult& more);
};

/// Exact. unpack() throws a data Error for text that pack() did not make; `where` names it.
std::string pack(const CalibrationResult& result);
CalibrationResult unpack(const std::string& packed, const std::string& where);

/// Everyone's together, the same on every rank. Collective.
CalibrationResult gather(parallel::Communicator& world, const CalibrationResult& mine);

}  // namespace ptq::runner
