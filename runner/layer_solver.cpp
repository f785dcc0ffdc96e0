#include "runner/layer_solver.h"

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::runner {

namespace {

using recipes::GroupPlan;

float amax_of(const Tensor& x) { return x.numel() > 0 ? kernels::amax(x).value : 0.0f; }

/// The largest value of each channel after it was divided by its factor.
float divided_amax(const Tensor& amax, const Tensor& factors) {
  float most = 0;
  for (int64_t c = 0; c < amax.numel(); ++c)
    most = std::max(most, factors.defined() ? amax.data<float>()[c] / factors.data<float>()[c] : amax.data<float>()[c]);
  return most;
}

}  // namespace

Tensor stored_form(const Tensor& factors) { return kernels::converted(recipes::reciprocal(factors), DType::kBF16); }

LayerSolver::LayerSolver(const LayerTensors& tensors, const recipes::LayerSmoothing& smoothing, const Decisions& decisions,
                         const recipes::Recipe& recipe, parallel::Communicator& stage, recipes::InputSource& inputs,
                         recipes::SearchSeconds& seconds, Write write)
    : tensors_(tensors),
      layer_(*tensors.layer),
      smoothing_(smoothing),
      decisions_(decisions),
      recipe_(recipe),
      stage_(stage),
      inputs_(inputs),
      seconds_(seconds),
      write_(std::move(write)) {
  for (size_t i = 0; i < tensors.specs.size(); ++i)
    if (tensors.specs[i].is_weight()) shares_[tensors.specs[i].linear] = i;
}

const recipes::Encoding& LayerSolver::encoding(int linear) const {
  return decisions_.at(layer_.linears[static_cast<size_t>(linear)].module).encoding;
}
const Tensor* LayerSolver::share_of(int linear) const {
  const auto found = shares_.find(linear);
  return found == shares_.end() ? nullptr : &tensors_.shares[found->second];
}
int64_t LayerSolver::first_row_of(int linear) const { return tensors_.placements[shares_.at(linear)].share.begin; }

Tensor LayerSolver::stored_factors(int linear) const {
  const auto found = stored_.find(layer_.linears[static_cast<size_t>(linear)].input_group);
  return found == stored_.end() ? Tensor() : found->second;
}

Tensor LayerSolver::row_factors(int linear) const {
  const auto found = rows_.find(linear);
  return found == rows_.end() ? Tensor() : found->second;
}

void LayerSolver::record(FoldExponents& folds) const {
  for (const auto& [plan, columns] : folded_) {
    const layers::SmoothingGroup& group = plan->group;
    std::vector<int> readers = group.linears;
    for (size_t i = 0; group.feeds_experts && i < layer_.linears.size(); ++i)
      if (layer_.linears[i].is_routed() && layer_.linears[i].feeds_down) readers.push_back(static_cast<int>(i));
    for (const int reader : readers) {
      const layers::LinearSpec& linear = layer_.linears[static_cast<size_t>(reader)];
      if (!linear.is_stacked()) folds.scale_columns(linear.tensor(".weight"), columns);
      for (int64_t e = 0; linear.is_stacked() && e < linear.stack; ++e)
        folds.scale_rows(linear.tensor(".weight"), columns, linear.stack, e);
    }
    if (group.feeds_experts) folds.scale_columns(layer_.moe()->router.module + ".weight", columns);
    if (group.fold.kind == layers::Fold::Kind::kNorm) folds.scale_columns(group.fold.norm.module + ".weight", recipes::reciprocal(columns));
  }
  for (const auto& [linear, rows] : rows_) {
    const layers::LinearSpec& maker = layer_.linears[static_cast<size_t>(linear)];
    folds.scale_rows(maker.tensor(".weight"), rows);
    if (maker.has_bias) folds.scale_columns(maker.tensor(".bias"), rows);
  }
}

void LayerSolver::solve(const ExpertLosses& experts, recipes::LayerStatistics& statistics) {
  statistics_ = &statistics;
  for (const GroupPlan& plan : smoothing_.groups) solve_group(plan, experts);
  // Linears whose rows took factors but that no search looks at.
  std::vector<int> rest;
  for (const auto& [linear, rows] : rows_)
    if (!is_written(linear)) rest.push_back(linear);
  recipes::Curvature flat;
  if (!rest.empty()) write_group(rest, Tensor(), flat);
}

std::vector<recipes::SmoothedWeight> LayerSolver::searched_weights(const GroupPlan& plan) {
  std::vector<recipes::SmoothedWeight> weights;
  const int64_t channels = layer_.linears[static_cast<size_t>(plan.group.linears.front())].in;
  std::vector<float> amaxes(plan.group.linears.size() * static_cast<size_t>(channels), 0.0f);
  for (size_t i = 0; i < plan.group.linears.size(); ++i) {
    Tensor amax = Tensor::zeros({channels}, DType::kF32);
    const Tensor& share = *share_of(plan.group.linears[i]);
    if (share.dim(0) > 0) kernels::column_amax(share, amax);
    std::copy_n(amax.data<float>(), channels, amaxes.begin() + static_cast<int64_t>(i) * channels);
  }
  stage_.all_reduce_max(std::span<float>(amaxes));
  for (size_t i = 0; i < plan.group.linears.size(); ++i) {
    const int linear = plan.group.linears[i];
    if (!encoding(linear).is_quantized()) continue;
    if (plan.rule == recipes::SmoothingRule::kAwq && !recipes::is_solvable(encoding(linear).format)) continue;
    const layers::LinearSpec& spec = layer_.linears[static_cast<size_t>(linear)];
    recipes::SmoothedWeight weight{encoding(linear), *share_of(linear), first_row_of(linear), spec.out,
                                   Tensor::zeros({channels}, DType::kF32)};
    for (size_t j = 0; j < plan.group.linears.size(); ++j) {
      const layers::LinearSpec& other = layer_.linears[static_cast<size_t>(plan.group.linears[j])];
      if (j != i && (other.scale_group != spec.scale_group || !recipes::info(weight.encoding.format).shares_weight_scale)) continue;
      for (int64_t c = 0; c < channels; ++c)
        weight.column_amax.data<float>()[c] =
            std::max(weight.column_amax.data<float>()[c], amaxes[j * static_cast<size_t>(channels) + static_cast<size_t>(c)]);
    }
    weights.push_back(std::move(weight));
  }
  return weights;
}

Tensor LayerSolver::weight_magnitudes(const GroupPlan& plan, const std::vector<recipes::SmoothedWeight>& weights, int64_t channels) {
  Tensor magnitudes = Tensor::zeros({channels}, DType::kF32);
  float* values = magnitudes.data<float>();
  // Experts come and go one by one: where they take part, weights have no say.
  if (plan.group.feeds_experts) {
    std::fill_n(values, channels, 1.0f);
    return magnitudes;
  }
  if (plan.rule == recipes::SmoothingRule::kSmoothQuant) {
    for (const auto& weight : weights)
      for (int64_t c = 0; c < channels; ++c) values[c] = std::max(values[c], weight.column_amax.data<float>()[c]);
    return magnitudes;
  }
  std::vector<int64_t> sums(static_cast<size_t>(channels), 0);
  int64_t rows = 0;
  for (const auto& weight : weights) {
    rows += weight.out;
    if (weight.rows.dim(0) > 0) kernels::column_sums(weight.rows, true, sums);
  }
  stage_.all_reduce_sum(std::span<int64_t>(sums));
  for (int64_t c = 0; c < channels; ++c)
    values[c] =
        static_cast<float>(static_cast<double>(sums[static_cast<size_t>(c)]) / kernels::kColumnSumUnits / static_cast<double>(rows));
  return magnitudes;
}

Tensor LayerSolver::apply(const GroupPlan& plan, const Tensor& factors) {
  const layers::SmoothingGroup& group = plan.group;
  Tensor exact = kernels::converted(factors, DType::kF32);
  float* f = exact.data<float>();
  const int64_t channels = exact.numel();
  if (plan.place == GroupPlan::Place::kStored) {
    const Tensor stored = stored_form(factors);
    stored_[group.input_group] = stored;
    return recipes::reciprocal(kernels::converted(stored, DType::kF32));
  }
  if (group.fold.kind == layers::Fold::Kind::kRows) {
    Tensor& rows = rows_[group.fold.linear];
    if (!rows.defined()) {
      rows = Tensor::empty({layer_.linears[static_cast<size_t>(group.fold.linear)].out}, DType::kF32);
      std::fill_n(rows.data<float>(), rows.numel(), 1.0f);
    }
    for (int64_t c = 0; c < channels; ++c) {
      const float power = group.fold.power;
      rows.data<float>()[group.fold.rows[static_cast<size_t>(c)]] = power == 1.0f ? 1.0f / f[c] : std::pow(f[c], -power);
    }
    const layers::LinearSpec& maker = layer_.linears[static_cast<size_t>(group.fold.linear)];
    if (maker.has_bias) {
      const Tensor& bias = tensors_.slices.at(maker.tensor(".bias"));
      Tensor scaled = kernels::converted(bias, DType::kF32);
      for (int64_t r = 0; r < scaled.numel(); ++r) scaled.data<float>()[r] *= rows.data<float>()[r];
      replaced_[maker.tensor(".bias")] = kernels::converted(scaled, bias.dtype());
    }
    return exact;
  }
  // The norm is rounded to its dtype; weights are multiplied by what it was really divided by.
  const layers::NormSpec& norm = group.fold.norm;
  const bool around_one = norm.kind == layers::NormSpec::Kind::kLayerNorm1p;
  const float one = around_one ? 1.0f : 0.0f;
  const Tensor& weight = tensors_.slices.at(norm.module + ".weight");
  Tensor divided = kernels::converted(weight, DType::kF32);
  for (int64_t c = 0; c < channels; ++c) divided.data<float>()[c] = (divided.data<float>()[c] + one) / f[c] - one;
  replaced_[norm.module + ".weight"] = kernels::converted(divided, weight.dtype());
  exact = recipes::norm_ratio(weight, replaced_.at(norm.module + ".weight"), around_one);
  f = exact.data<float>();
  if (norm.kind == layers::NormSpec::Kind::kLayerNorm1p) {
    const Tensor& bias = tensors_.slices.at(norm.module + ".bias");
    Tensor divided_bias = kernels::converted(bias, DType::kF32);
    for (int64_t c = 0; c < channels; ++c) divided_bias.data<float>()[c] /= f[c];
    replaced_[norm.module + ".bias"] = kernels::converted(divided_bias, bias.dtype());
  }
  if (group.feeds_experts) {
    const std::string name = layer_.moe()->router.module + ".weight";
    const Tensor& router = tensors_.slices.at(name);
    Tensor scaled = kernels::converted(router, DType::kF32);
    kernels::scale_columns(scaled, exact);
    replaced_[name] = kernels::converted(scaled, router.dtype());
  }
  return exact;
}

void LayerSolver::solve_group(const GroupPlan& plan, const ExpertLosses& experts) {
  const recipes::InputStatistics input = inputs_.take(layer_, plan.group.input_group, plan.needs);
  const std::vector<int>& linears = plan.group.linears;
  std::vector<recipes::SmoothedWeight> weights;
  if (!linears.empty()) weights = searched_weights(plan);
  Tensor columns;
  if (plan.place != GroupPlan::Place::kNone) {
    recipes::FactorLimits limits{.octaves = plan.octaves};
    if (plan.place == GroupPlan::Place::kFolded && plan.group.fold.kind == layers::Fold::Kind::kRows) limits.ties = plan.group.fold.rows;
    const Tensor magnitudes = weight_magnitudes(plan, weights, input.amax.numel());
    const recipes::Stopwatch watch(seconds_.factors);
    recipes::ChosenSmoothing chosen;
    if (plan.searched) {
      chosen = recipes::choose_smoothing(plan.rule, weights, input, magnitudes, limits, recipe_.awq.grid,
                                         plan.group.feeds_experts ? experts.by_alpha : std::vector<double>(), stage_);
    } else {
      chosen.exponents.alpha = recipe_.smoothquant.alpha;
      chosen.factors = recipes::smoothing_factors(plan.rule, input, magnitudes, limits, chosen.exponents);
    }
    choices_.push_back({layer_.index, linears.empty() ? layer_.moe()->module : layer_.linears[static_cast<size_t>(linears.front())].module,
                        chosen.exponents, chosen.loss, chosen.plain_loss});
    columns = apply(plan, chosen.factors);
    if (plan.place == GroupPlan::Place::kFolded) folded_.emplace_back(&plan, columns);
    if (plan.group.feeds_experts) expert_factors_ = {columns, chosen.exponents.alpha};
  }
  weights.clear();
  statistics_->input_amax[plan.group.input_group] = divided_amax(input.amax, columns);
  recipes::Curvature curvature;
  if (!input.gram.empty()) curvature = recipes::Curvature(input.gram, columns.defined() ? recipes::reciprocal(columns) : Tensor());
  std::vector<int> quantized;
  for (const int linear : linears)
    if (encoding(linear).is_quantized()) quantized.push_back(linear);
  write_group(quantized, columns, curvature);
}

Tensor LayerSolver::transformed(int linear, const Tensor& columns) const {
  Tensor weight = kernels::converted(*share_of(linear), DType::kF32);
  if (columns.defined() && weight.dim(0) > 0) kernels::scale_columns(weight, columns);
  const Tensor rows = row_factors(linear);
  if (!rows.defined()) return weight;
  const int64_t first = first_row_of(linear);
  kernels::scale_rows(weight, rows.rows(first, first + weight.dim(0)));
  return weight;
}

void LayerSolver::merge_weight_amax(const std::vector<int>& linears, const std::vector<float>& mine) {
  std::vector<float> amaxes = mine;
  stage_.all_reduce_max(std::span<float>(amaxes));
  for (size_t i = 0; i < linears.size(); ++i) statistics_->weight_amax[static_cast<size_t>(linears[i])] = amaxes[i];
}

recipes::LinearScales LayerSolver::scales_of(int linear) const { return recipes::weight_scales(layer_, decisions_, *statistics_, linear); }

void LayerSolver::write_group(const std::vector<int>& linears, const Tensor& columns, recipes::Curvature& curvature) {
  std::vector<Tensor> weights;
  std::vector<float> amaxes;
  for (const int linear : linears) {
    weights.push_back(transformed(linear, columns));
    amaxes.push_back(amax_of(weights.back()));
  }
  merge_weight_amax(linears, amaxes);
  std::vector<Tensor> row_scales(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    const recipes::Stopwatch watch(seconds_.scales);
    const recipes::Encoding& kind = encoding(linears[i]);
    if (weights[i].dim(0) == 0) continue;
    if (recipes::is_solvable(kind.format))
      row_scales[i] = recipes::solve_row_scales(kind, weights[i], scales_of(linears[i]), curvature, recipe_.awq.clip);
  }
  if (curvature.defined() && recipe_.awq.error_feedback) {
    const recipes::Stopwatch watch(seconds_.feedback);
    curvature.factor();
    for (size_t i = 0; i < linears.size(); ++i)
      if (row_scales[i].defined()) recipes::solve_codes(encoding(linears[i]), weights[i], row_scales[i], scales_of(linears[i]), curvature);
  }
  for (size_t i = 0; i < linears.size(); ++i) {
    const layers::LinearSpec& spec = layer_.linears[static_cast<size_t>(linears[i])];
    if (weights[i].dim(0) > 0) write_(spec, weights[i], row_scales[i], first_row_of(linears[i]), scales_of(linears[i]));
    written_[linears[i]] = true;
  }
  // W4A8's second level follows from the scales that were found, not from the weights.
  std::vector<float> largest(linears.size(), 0.0f);
  for (size_t i = 0; i < linears.size(); ++i)
    if (encoding(linears[i]).format == recipes::Format::kInt4Fp8 && row_scales[i].defined()) largest[i] = 7.0f * amax_of(row_scales[i]);
  stage_.all_reduce_max(std::span<float>(largest));
  for (size_t i = 0; i < linears.size(); ++i)
    if (encoding(linears[i]).format == recipes::Format::kInt4Fp8) statistics_->weight_amax[static_cast<size_t>(linears[i])] = largest[i];
}

}  // namespace ptq::runner
