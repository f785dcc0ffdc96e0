#include "runner/expert_solver.h"

#include <algorithm>
#include <numeric>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::runner {

namespace {

using recipes::GroupPlan;

Tensor column_amax_of(const Tensor& x) {
  Tensor amax = Tensor::zeros({x.dim(1)}, DType::kF32);
  if (x.dim(0) > 0) kernels::column_amax(x, amax);
  return amax;
}

Tensor column_mean_of(const Tensor& x) {
  std::vector<int64_t> sums(static_cast<size_t>(x.dim(1)), 0);
  kernels::column_sums(x, true, sums);
  Tensor means = Tensor::empty({x.dim(1)}, DType::kF32);
  const auto rows = static_cast<double>(std::max<int64_t>(1, x.dim(0)));
  for (size_t c = 0; c < sums.size(); ++c)
    means.data<float>()[c] = static_cast<float>(static_cast<double>(sums[c]) / kernels::kColumnSumUnits / rows);
  return means;
}

/// max of amax·factors, or amax/factors.
float scaled_amax(const Tensor& amax, const Tensor& factors, bool divide) {
  float most = 0;
  for (int64_t c = 0; c < amax.numel(); ++c) {
    const float factor = factors.defined() ? factors.data<float>()[c] : 1.0f;
    most = std::max(most, divide ? amax.data<float>()[c] / factor : amax.data<float>()[c] * factor);
  }
  return most;
}

/// Rows of what makes the down projection's input, divided by their factors.
Tensor row_factors(const layers::Fold& fold, int64_t out, const Tensor& down_factors) {
  Tensor rows = Tensor::empty({out}, DType::kF32);
  std::fill_n(rows.data<float>(), out, 1.0f);
  for (int64_t c = 0; c < down_factors.numel(); ++c)
    rows.data<float>()[fold.rows[static_cast<size_t>(c)]] = 1.0f / down_factors.data<float>()[c];
  return rows;
}

}  // namespace

ExpertSolver::ExpertSolver(const layers::LayerSpec& layer, const recipes::LayerSmoothing& smoothing, const Decisions& decisions,
                           const recipes::Recipe& recipe, const parallel::Mesh& mesh, recipes::SearchSeconds& seconds)
    : layer_(layer), moe_(*layer.moe()), smoothing_(smoothing), decisions_(decisions), recipe_(recipe), mesh_(mesh), seconds_(seconds) {
  for (const GroupPlan& plan : smoothing.groups)
    if (plan.group.feeds_experts) plan_ = &plan;
  require(plan_ != nullptr, "searched experts read a group that is searched");
  alphas_ = recipes::shared_alphas(recipe.awq.grid);
  columns_ = 2 + 2 * alphas_.size();
  amaxes_.assign(moe_.experts.size() * columns_, -1.0f);
  losses_.assign(moe_.experts.size() * alphas_.size(), 0.0);
}

const recipes::Encoding& ExpertSolver::encoding(int linear) const {
  return decisions_.at(layer_.linears[static_cast<size_t>(linear)].module).encoding;
}

bool ExpertSolver::searches(int linear) const {
  return plan_->rule == recipes::SmoothingRule::kAwq && recipes::is_solvable(encoding(linear).format);
}

recipes::InputNeeds ExpertSolver::tried_needs(int linear, bool tries) const {
  const bool by_tokens = recipes::counts_activations(encoding(linear).format);
  return {true, tries && !by_tokens, tries && by_tokens};
}

std::vector<int> ExpertSolver::feeding(int expert) const { return feeding_linears(moe_, expert); }

void ExpertSolver::look(const ExpertChunk& chunk, std::unique_ptr<ExpertInputs> inputs, const recipes::InputStatistics& input,
                        const std::function<layers::ExpertWeights(int)>& weights, bool keep) {
  if (chunk.broken) return;
  const recipes::Stopwatch watch(seconds_.factors);
  if (candidates_.empty())
    for (const double searched : alphas_) {
      const double alpha = plan_->searched ? searched : recipe_.smoothquant.alpha;
      // SmoothQuant with weights in it would need all experts' before any: their part is left out.
      Tensor ones = Tensor::empty(input.amax.shape(), DType::kF32);
      std::fill_n(ones.data<float>(), ones.numel(), 1.0f);
      candidates_.push_back(recipes::smoothing_factors(plan_->rule, input, ones, {.octaves = plan_->octaves}, {alpha, 0.0}));
    }
  const auto self = parallel::make_self_communicator();
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e) {
    const auto expert = static_cast<int>(e);
    const layers::ExpertLinears& linears = moe_.experts[static_cast<size_t>(e)];
    layers::ExpertWeights matrices = weights(expert);
    Seen& seen = seen_[expert];
    seen.tokens = inputs->tokens(expert);
    const Tensor& down = matrices.of(linears, linears.down).weight;
    const Tensor down_amax = column_amax_of(down);
    if (seen.tokens > 0) {
      const bool tries = plan_->searched && smoothing_.experts_down != GroupPlan::Place::kNone;
      const recipes::InputStatistics inner = inputs->read(expert, true, tried_needs(linears.down, tries));
      if (smoothing_.experts_down != GroupPlan::Place::kNone) {
        const recipes::FactorLimits limits{.octaves = smoothing_.octaves};
        if (plan_->searched) {
          const recipes::SmoothedWeight weight{encoding(linears.down), down, 0, down.dim(0), down_amax};
          seen.down_factors = recipes::choose_smoothing(plan_->rule, {weight}, inner,
                                                        plan_->rule == recipes::SmoothingRule::kAwq ? column_mean_of(down) : down_amax,
                                                        limits, recipe_.awq.grid, {}, *self)
                                  .factors;
        } else {
          seen.down_factors = recipes::smoothing_factors(plan_->rule, inner, down_amax, limits, {recipe_.smoothquant.alpha, 0.0});
        }
        if (smoothing_.experts_down == GroupPlan::Place::kStored)
          seen.down_factors = recipes::reciprocal(kernels::converted(stored_form(seen.down_factors), DType::kF32));
      }
      amaxes_[at(expert, 1)] = scaled_amax(inner.amax, seen.down_factors, true);
    }
    amaxes_[at(expert, 0)] = scaled_amax(down_amax, seen.down_factors, false);
    recipes::InputStatistics read;
    Tensor read_amax;
    if (seen.tokens > 0) {
      const bool tries = plan_->searched && plan_->place != GroupPlan::Place::kNone;
      read = inputs->read(expert, false, tried_needs(feeding(expert).front(), tries));
      read_amax = read.amax;
      read.amax = tries ? input.amax : Tensor();
    }
    for (const int linear : feeding(expert)) {
      Tensor weight = matrices.of(linears, linear).weight;
      const layers::Fold fold = layers::expert_fold(layer_, expert);
      Tensor stored = weight;
      if (smoothing_.experts_down == GroupPlan::Place::kFolded && seen.down_factors.defined() && fold.linear == linear) {
        stored = kernels::converted(weight, DType::kF32);
        kernels::scale_rows(stored, row_factors(fold, stored.dim(0), seen.down_factors));
      }
      const Tensor amax = column_amax_of(stored);
      for (size_t s = 0; s < alphas_.size(); ++s) {
        float& kept = amaxes_[at(expert, 2 + s)];
        kept = std::max(kept, scaled_amax(amax, plan_->place == GroupPlan::Place::kNone ? Tensor() : candidates_[s], false));
      }
      if (!read.amax.defined()) continue;
      const recipes::SmoothedWeight candidate{encoding(linear), weight, 0, weight.dim(0), column_amax_of(weight)};
      const recipes::SmoothingLoss loss(candidate, read);
      std::vector<double> rows(static_cast<size_t>(loss.searched_rows()));
      for (size_t s = 0; s < alphas_.size(); ++s) {
        loss.evaluate(candidates_[s], rows);
        losses_[static_cast<size_t>(expert) * alphas_.size() + s] += std::accumulate(rows.begin(), rows.end(), 0.0);
      }
    }
    if (read_amax.defined())
      for (size_t s = 0; s < alphas_.size(); ++s)
        amaxes_[at(expert, 2 + alphas_.size() + s)] =
            scaled_amax(read_amax, plan_->place == GroupPlan::Place::kNone ? Tensor() : candidates_[s], true);
    if (!keep) inputs->drop(expert);
  }
  inputs_ = keep ? std::move(inputs) : nullptr;
}

ExpertLosses ExpertSolver::merge() {
  recipes::merge_values(losses_, mesh_.stage());
  mesh_.stage().all_reduce_max(std::span<float>(amaxes_));
  ExpertLosses losses;
  losses.by_alpha.assign(alphas_.size(), 0.0);
  for (size_t e = 0; e < moe_.experts.size(); ++e)
    for (size_t s = 0; s < alphas_.size(); ++s) losses.by_alpha[s] += losses_[e * alphas_.size() + s];
  return losses;
}

void ExpertSolver::settle(const SolvedFactors& chosen, recipes::LayerStatistics& statistics) {
  chosen_ = chosen.weights;
  size_t step = 0;
  if (plan_->searched)
    for (size_t s = 0; s < alphas_.size(); ++s)
      if (alphas_[s] == chosen.alpha) step = s;
  // The factors were rounded with the norm since: a weight may be a little above this amax, and saturates.
  for (size_t i = 0; i < layer_.linears.size(); ++i) {
    const layers::LinearSpec& linear = layer_.linears[i];
    if (!linear.is_routed()) continue;
    float amax = 0;
    for (int64_t e = 0; e < static_cast<int64_t>(moe_.experts.size()); ++e) {
      if (!linear.is_stacked() && linear.expert != e) continue;
      amax = std::max(amax, amaxes_[at(static_cast<int>(e), linear.feeds_down ? 2 + step : 0)]);
    }
    statistics.weight_amax[i] = amax;
  }
  for (size_t e = 0; e < statistics.experts.size(); ++e) {
    const auto expert = static_cast<int>(e);
    statistics.experts[e].up_input_amax = amaxes_[at(expert, 2 + alphas_.size() + step)];
    statistics.experts[e].down_input_amax = amaxes_[at(expert, 1)];
  }
}

Tensor ExpertSolver::stored_factors(int expert, int linear) const {
  if (layer_.linears[static_cast<size_t>(linear)].feeds_down)
    return plan_->place == GroupPlan::Place::kStored && chosen_.defined() ? stored_form(chosen_) : Tensor();
  const auto seen = seen_.find(expert);
  if (smoothing_.experts_down != GroupPlan::Place::kStored || seen == seen_.end() || !seen->second.down_factors.defined()) return Tensor();
  return stored_form(seen->second.down_factors);
}

void ExpertSolver::record(int expert, FoldExponents& folds) const {
  const auto seen = seen_.find(expert);
  if (smoothing_.experts_down != GroupPlan::Place::kFolded || seen == seen_.end() || !seen->second.down_factors.defined()) return;
  const Tensor& factors = seen->second.down_factors;
  const layers::Fold fold = layers::expert_fold(layer_, expert);
  const layers::LinearSpec& down = layer_.linears[static_cast<size_t>(moe_.experts[static_cast<size_t>(expert)].down)];
  const layers::LinearSpec& maker = layer_.linears[static_cast<size_t>(fold.linear)];
  const Tensor rows = row_factors(fold, maker.out, factors);
  if (down.is_stacked()) {  // [in, out]
    folds.scale_rows(down.tensor(".weight"), factors, down.stack, expert);
    folds.scale_columns(maker.tensor(".weight"), rows, maker.stack, expert);
  } else {
    folds.scale_columns(down.tensor(".weight"), factors);
    folds.scale_rows(maker.tensor(".weight"), rows);
  }
}

void ExpertSolver::write(int expert, layers::ExpertWeights weights, const std::function<recipes::LinearScales(int linear)>& scales,
                         const Write& write) {
  Seen& seen = seen_[expert];
  const layers::ExpertLinears& linears = moe_.experts[static_cast<size_t>(expert)];
  const layers::Fold fold = layers::expert_fold(layer_, expert);
  const auto finish = [&](const std::vector<int>& members, bool down, const Tensor& columns) {
    recipes::Curvature curvature;
    const bool searched = searches(members.front());
    if (searched && seen.tokens > 0)
      curvature = recipes::Curvature(inputs_->read(expert, down, {false, true, false}).gram,
                                     columns.defined() ? recipes::reciprocal(columns) : Tensor());
    std::vector<Tensor> matrices, row_scales;
    for (const int linear : members) {
      Tensor weight = kernels::converted(weights.of(linears, linear).weight, DType::kF32);
      if (columns.defined()) kernels::scale_columns(weight, columns);
      if (smoothing_.experts_down == GroupPlan::Place::kFolded && seen.down_factors.defined() && fold.linear == linear)
        kernels::scale_rows(weight, row_factors(fold, weight.dim(0), seen.down_factors));
      Tensor found;
      const recipes::Stopwatch watch(seconds_.scales);
      if (searched) found = recipes::solve_row_scales(encoding(linear), weight, scales(linear), curvature, recipe_.awq.clip);
      matrices.push_back(std::move(weight));
      row_scales.push_back(std::move(found));
    }
    if (searched && recipe_.awq.error_feedback) {
      if (curvature.defined() && seen.tokens >= matrices.front().dim(1)) {
        const recipes::Stopwatch watch(seconds_.feedback);
        curvature.factor();
        for (size_t i = 0; i < members.size(); ++i)
          recipes::solve_codes(encoding(members[i]), matrices[i], row_scales[i], scales(members[i]), curvature);
      } else {
        starved_.insert(expert);
      }
    }
    // W4A8's second level follows from the scales that were found, those of gate and up together.
    float largest = 0;
    for (size_t i = 0; i < members.size(); ++i)
      if (encoding(members[i]).format == recipes::Format::kInt4Fp8 && row_scales[i].defined())
        largest = std::max(largest, 7.0f * kernels::amax(row_scales[i]).value);
    for (size_t i = 0; i < members.size(); ++i) {
      recipes::LinearScales final_scales = scales(members[i]);
      std::vector<recipes::ScaleNote> noted_with_the_layer;
      if (encoding(members[i]).format == recipes::Format::kInt4Fp8)
        final_scales.weight_scale = recipes::weight_scale(encoding(members[i]), largest, "", noted_with_the_layer);
      final_scales.pre_quant_scale = stored_factors(expert, members[i]);
      write(layer_.linears[static_cast<size_t>(members[i])], matrices[i], row_scales[i], final_scales);
    }
  };
  finish({linears.down}, true, seen.down_factors);
  finish(feeding(expert), false, chosen_);
  if (inputs_) inputs_->drop(expert);
}

}  // namespace ptq::runner
