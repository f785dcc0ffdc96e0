#include "runner/mix_judge.h"

namespace ptq::runner {

MixJudge::MixJudge(parallel::Communicator& world, SourceModel reference, const std::vector<std::vector<int32_t>>& rows,
                   const EvaluateSettings& settings)
    : world_(world),
      mesh_(parallel::Mesh::make(world, {world.size(), 1, 1})),
      share_(TokenRows::run(rows, world.size(), world.rank())),
      settings_(settings),
      reference_(evaluated(std::move(reference))) {}

std::unique_ptr<EvaluatedModel> MixJudge::evaluated(SourceModel model) {
  auto result = std::make_unique<EvaluatedModel>(std::move(model), mesh_, share_, settings_);
  result->load_head();
  return result;
}

double MixJudge::kl(SourceModel model) {
  const auto quantized = evaluated(std::move(model));
  return mean_kl(world_, *quantized, *reference_, share_);
}

}  // namespace ptq::runner
