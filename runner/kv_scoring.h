#pragma once
// How much each format of the KV cache would hurt each attention block, from the gradients by keys and values: as runner/scoring.h does for
// linears, Δ being what a cache of the format makes of keys and values, less these. Sums are exact: no split over ranks changes a bit.

#include <vector>

#include "runner/evaluated_model.h"

namespace ptq::runner {

class KvScorer {
 public:
  /// `scales` has those of every attention block, for all formats the same. Keeps references. Without formats it does nothing.
  KvScorer(const EvaluationClient& scales, const std::vector<recipes::KvFormat>& formats, const layers::ModelSpec& model,
           const parallel::Mesh& mesh, layers::Workspace& workspace);
  /// One micro-batch, as GradientHooks::key_value_gradient shows it: += (∂L/∂k·Δk)² and (∂L/∂v·Δv)².
  void add(const layers::LayerSpec& layer, const Tensor& k, const Tensor& v, const Tensor& dk, const Tensor& dv);
  /// Adds up what all ranks have of the layer. Collective over the world.
  void layer_done(const layers::LayerSpec& layer);
  /// [attention blocks in model order][formats]: sums over tokens and channels of the layers that are done, 0 for others.
  const std::vector<std::vector<double>>& scores() const { return scores_; }

  /// Of one layer; empty where it has no attention. take(): as an earlier run left them.
  std::vector<double> scores_of(int64_t layer) const;
  void take(int64_t layer, const std::vector<double>& scores);

 private:
  /// Does another tensor rank before this one have the same kv heads?
  bool is_replica(const layers::LayerSpec& layer) const;
  void add_one(recipes::KvFormat format, float scale, const Tensor& x, const Tensor& dx, std::vector<int64_t>& bins);

  const EvaluationClient& scales_;
  const std::vector<recipes::KvFormat>& formats_;
  const parallel::Mesh& mesh_;
  layers::Workspace& workspace_;
  std::map<int64_t, size_t> blocks_;        ///< by layer
  std::vector<std::vector<int64_t>> sums_;  ///< [formats] bins of the layer
  std::vector<std::vector<double>> scores_;
};

}  // namespace ptq::runner
