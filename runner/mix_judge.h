#pragma once
// What a mix of formats costs in truth: its KL divergence to the unquantized model, on rows that no score has seen.

#include <memory>
#include <string>
#include <vector>

#include "runner/evaluate.h"

namespace ptq::runner {

class MixJudge {
 public:
  /// Runs the reference over the rows, which are spread over the ranks. Keeps its final hidden states. Collective over the world.
  MixJudge(parallel::Communicator& world, SourceModel reference, const std::vector<std::vector<int32_t>>& rows,
           const EvaluateSettings& settings);
  /// Mean KL(reference || model) of a token, in nats. Collective over the world.
  double kl(SourceModel model);

 private:
  std::unique_ptr<EvaluatedModel> evaluated(SourceModel model);

  parallel::Communicator& world_;
  parallel::Mesh mesh_;
  TokenRows share_;
  EvaluateSettings settings_;
  std::unique_ptr<EvaluatedModel> reference_;
};

}  // namespace ptq::runner
