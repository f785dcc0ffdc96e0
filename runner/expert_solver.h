#pragma once
// Routed experts whose weights are searched. First look, when a chunk's tokens have passed: each expert finds the factors of its down
// projection, and says what every candidate of the layer's common factors would cost it. Then the layer chooses (LayerSolver). Last look:
// scales and codes under the Gram matrix of the expert's own tokens, weighted as the router weights them.

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "runner/expert_inputs.h"
#include "runner/layer_solver.h"

namespace ptq::runner {

class ExpertSolver {
 public:
  using Decisions = LayerSolver::Decisions;
  using Write = std::function<void(const layers::LinearSpec& linear, const Tensor& weight, const Tensor& row_scales,
                                   const recipes::LinearScales& scales)>;

  ExpertSolver(const layers::LayerSpec& layer, const recipes::LayerSmoothing& smoothing, const Decisions& decisions,
               const recipes::Recipe& recipe, const parallel::Mesh& mesh, recipes::SearchSeconds& seconds);

  /// `inputs`: what the chunk's owned experts have read; weights(e): the expert's matrices; `input`: magnitudes of what the whole layer's
  /// experts read. `keep`: until write(). Communicates nothing.
  void look(const ExpertChunk& chunk, std::unique_ptr<ExpertInputs> inputs, const recipes::InputStatistics& input,
            const std::function<layers::ExpertWeights(int)>& weights, bool keep);
  /// The same inputs once more, of a chunk whose inputs were not kept: for write().
  void look_again(std::unique_ptr<ExpertInputs> inputs) { inputs_ = std::move(inputs); }
  /// After all chunks: what all ranks' experts say. Collective over the stage.
  ExpertLosses merge();
  /// With the factors that were chosen: amaxes of what is stored and read, into `statistics`.
  void settle(const SolvedFactors& chosen, recipes::LayerStatistics& statistics);
  /// Writes one owned expert. scale(linear): its per-tensor weight scale.
  void write(int expert, layers::ExpertWeights weights, const std::function<recipes::LinearScales(int linear)>& scales, const Write& write);
  /// pre_quant_scale of an expert's linear, where it stores one; undefined otherwise.
  Tensor stored_factors(int expert, int linear) const;
  /// How the expert's tensors change where the factors of its down projection, powers of two, are folded.
  void record(int expert, FoldExponents& folds) const;
  /// Had this expert too few tokens for error feedback? Known after write().
  bool is_starved(int expert) const { return starved_.count(expert) > 0; }

 private:
  struct Seen {
    int64_t tokens = 0;
    Tensor down_factors;  ///< [I] f32 or undefined
  };
  /// What the losses of factors are counted by: a sample of tokens where the format rounds activations, else the Gram matrix.
  recipes::InputNeeds tried_needs(int linear, bool tries) const;
  std::vector<int> feeding(int expert) const;
  const recipes::Encoding& encoding(int linear) const;
  bool searches(int linear) const;
  size_t at(int expert, size_t column) const { return static_cast<size_t>(expert) * columns_ + column; }

  const layers::LayerSpec& layer_;
  const layers::MoeSpec& moe_;
  const recipes::LayerSmoothing& smoothing_;
  const Decisions& decisions_;
  const recipes::Recipe& recipe_;
  const parallel::Mesh& mesh_;
  recipes::SearchSeconds& seconds_;
  const recipes::GroupPlan* plan_ = nullptr;  ///< of the group that experts read
  std::vector<double> alphas_;
  size_t columns_ = 0;
  std::vector<float> amaxes_;   ///< by expert: down weight, down input, then gate/up weight and input by alpha; -1: not this rank's
  std::vector<double> losses_;  ///< by expert and alpha
  std::vector<Tensor> candidates_;
  Tensor chosen_;
  std::map<int, Seen> seen_;
  std::unique_ptr<ExpertInputs> inputs_;  ///< of the chunk that is written next
  std::set<int> starved_;
};

}  // namespace ptq::runner
