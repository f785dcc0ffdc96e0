#pragma once
// One layer whose weights are searched: smoothing factors group by group, consumers first, what folds them, and for every rank's rows the
// scales and codes of least error. What a linear is multiplied by is exact in f32: rounding happens once, when it is encoded.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "recipes/activation_collector.h"
#include "recipes/minmax.h"
#include "recipes/smoothing_plan.h"
#include "recipes/weight_solver.h"
#include "runner/folded_reader.h"
#include "runner/sweep.h"

namespace ptq::runner {

/// What routed experts add to the search of the group they read; see ExpertSolver.
struct ExpertLosses {
  std::vector<double> by_alpha;  ///< for each of recipes::shared_alphas; empty: nothing to add
};

struct SolvedFactors {
  Tensor weights;  ///< [K] f32 that the columns of all weights of the group are multiplied by; undefined: ones
  double alpha = 0;
};

/// What was chosen for one group.
struct GroupChoice {
  int64_t layer = 0;
  std::string module;  ///< the first linear that reads the group, or the experts
  recipes::Exponents exponents;
  double loss = 0, plain_loss = 0;  ///< with the factors, and without; 0: nothing was tried
};

class LayerSolver {
 public:
  using Decisions = std::map<std::string, recipes::Decision>;
  /// Takes rows of a finished linear: weight [rows, in] f32 and its row scales (undefined: those of min-max).
  using Write = std::function<void(const layers::LinearSpec& linear, const Tensor& weight, const Tensor& row_scales, int64_t first_row,
                                   const recipes::LinearScales& scales)>;

  LayerSolver(const LayerTensors& tensors, const recipes::LayerSmoothing& smoothing, const Decisions& decisions,
              const recipes::Recipe& recipe, parallel::Communicator& stage, recipes::InputSource& inputs, recipes::SearchSeconds& seconds,
              Write write);

  /// Solves every group but what routed experts have by themselves. `statistics` gets the amaxes of what is stored and of what servers
  /// will quantize. Collective over the stage.
  void solve(const ExpertLosses& experts, recipes::LayerStatistics& statistics);

  /// Linears whose rows were written already.
  bool is_written(int linear) const { return written_.count(linear) > 0; }
  /// Small tensors that took factors, whole, in their own dtype: norms, routers, biases. Those not in it stay as they were.
  const std::map<std::string, Tensor>& replaced() const { return replaced_; }
  /// pre_quant_scale [K] bf16 of a linear that stores one.
  Tensor stored_factors(int linear) const;
  const std::vector<GroupChoice>& choices() const { return choices_; }
  /// Of the group that routed experts read.
  const SolvedFactors& expert_factors() const { return expert_factors_; }
  /// How the source's tensors change where the factors, powers of two, are folded; of routed experts' tensors what this layer does to them.
  void record(FoldExponents& folds) const;
  /// What each channel of the values is multiplied by: rows of the linear that makes them; undefined: ones.
  Tensor row_factors(int linear) const;

 private:
  void solve_group(const recipes::GroupPlan& plan, const ExpertLosses& experts);
  std::vector<recipes::SmoothedWeight> searched_weights(const recipes::GroupPlan& plan);
  /// mean|w| or max|w| by channel, as the rule has it, [channels] f32. Collective over the stage.
  Tensor weight_magnitudes(const recipes::GroupPlan& plan, const std::vector<recipes::SmoothedWeight>& weights, int64_t channels);
  /// The factors as they will be multiplied in, after what takes them was rounded.
  Tensor apply(const recipes::GroupPlan& plan, const Tensor& factors);
  void write_group(const std::vector<int>& linears, const Tensor& columns, recipes::Curvature& curvature);
  Tensor transformed(int linear, const Tensor& columns) const;
  void merge_weight_amax(const std::vector<int>& linears, const std::vector<float>& mine);
  recipes::LinearScales scales_of(int linear) const;
  const recipes::Encoding& encoding(int linear) const;
  const Tensor* share_of(int linear) const;
  int64_t first_row_of(int linear) const;

  const LayerTensors& tensors_;
  const layers::LayerSpec& layer_;
  const recipes::LayerSmoothing& smoothing_;
  const Decisions& decisions_;
  const recipes::Recipe& recipe_;
  parallel::Communicator& stage_;
  recipes::InputSource& inputs_;
  recipes::SearchSeconds& seconds_;
  Write write_;
  recipes::LayerStatistics* statistics_ = nullptr;
  std::map<int, size_t> shares_;                                      ///< linear -> index in tensors_
  std::map<int, Tensor> rows_;                                        ///< linear -> [out] factors on its rows
  std::map<int, Tensor> stored_;                                      ///< input group -> pre_quant_scale
  std::vector<std::pair<const recipes::GroupPlan*, Tensor>> folded_;  ///< what the group's columns were multiplied by
  std::map<std::string, Tensor> replaced_;
  std::map<int, bool> written_;
  SolvedFactors expert_factors_;
  std::vector<GroupChoice> choices_;
};

/// Rounds factors to bf16, as servers multiply by them: pre_quant_scale of `factors` that weights are multiplied by.
Tensor stored_form(const Tensor& factors);

}  // namespace ptq::runner
