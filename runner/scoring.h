#pragma once
// How much each candidate format would hurt each decision group: the sum over tokens and channels of (∂L/∂y·Δy)², where Δy is what a
// server that runs the candidate would make of the unquantized input, less y. Sums are exact: no split over ranks changes a bit.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runner/evaluated_model.h"
#include "runner/loss_head.h"
#include "runner/sweep.h"

namespace ptq::runner {

/// What is scored: the model, and the same model quantized whole in each candidate format.
struct ScoringInput {
  const SourceModel& model;
  std::vector<const SourceModel*> candidates;
  std::map<std::string, int> group_of;  ///< decision groups by module name, from 0; modules in none are not scored
  int groups = 0;
  const std::vector<std::vector<int32_t>>& rows;
  int64_t seed = 0;
  bool fp32 = false;
  int64_t host_memory = 0;                    ///< bytes this rank may use
  std::string scratch;                        ///< for inputs of layers that do not fit
  std::vector<recipes::KvFormat> kv_formats;  ///< of the KV cache, scored for every attention block
  size_t kv_scales = 0;                       ///< the candidate with its scales, which are the same for all formats
  std::string progress;                       ///< folder: scores of layers that an earlier run has done are taken from it
};

struct ScoringResult {
  std::vector<std::vector<double>> scores;     ///< [groups][candidates]: half the sum over a token: nats it would add to the KL divergence
  std::vector<std::vector<double>> kv_scores;  ///< [attention blocks in model order][kv_formats], alike
  int64_t tokens = 0;                          ///< that had a label
  double forward_seconds = 0, backward_seconds = 0;
};

/// One forward and one backward sweep, the latter kept after every layer; going on with one makes the inputs of the layers that are left
/// again. `mesh` has one pipeline stage. Throws a user Error when no token has a label. Collective over the
/// world.
ScoringResult score_candidates(const ScoringInput& input, const parallel::Mesh& mesh,
                               const std::function<void(bool backward, const SweepProgress&)>& on_layer);

}  // namespace ptq::runner
