// The part of a calibration run that searches: what it collects, and how it writes layers and experts whose weights were changed.

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "recipes/kv_cache.h"
#include "recipes/range.h"
#include "runner/calibration.h"

namespace ptq::runner {

using recipes::GroupPlan;

const recipes::LayerSmoothing& Calibration::smoothing(const layers::LayerSpec& layer) const { return smoothing_.at(layer.index); }

recipes::CollectorOptions Calibration::collector_options(const std::vector<int64_t>& row_lengths) const {
  return {[this](const layers::LayerSpec& layer, int group) { return needs(layer, group); },
          [this](const layers::LayerSpec& layer) { return keeps_tokens(layer); }, &mesh_.data(), &mesh_.stage(), row_lengths};
}

recipes::InputNeeds Calibration::needs(const layers::LayerSpec& layer, int input_group) const {
  const auto& groups = groups_.at(layer.index);
  if (std::none_of(groups.begin(), groups.end(), [&](const auto& group) { return group.input_group == input_group; })) return {};
  const GroupPlan* plan = smoothing(layer).find(input_group);
  recipes::InputNeeds needs = plan ? plan->needs : recipes::InputNeeds{};
  needs.channels = true;
  needs.gram = needs.gram || recipe_.keep_gram;
  needs.sample = needs.sample || recipe_.keep_gram;
  return needs;
}

bool Calibration::keeps_tokens(const layers::LayerSpec& layer) const {
  return smoothing(layer).experts || (recipe_.keep_gram && is_observed() && layer.moe() && !reused_);
}

void Calibration::linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch& batch) {
  observer_.linear_input(layer, input_group, x, batch);
  collector_.linear_input(layer, input_group, x, batch);
}

void Calibration::expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x,
                               const layers::ExpertVisits& visits) {
  observer_.expert_input(layer, expert, linear, x, visits);
  collector_.expert_input(layer, expert, linear, x, visits);
}

void Calibration::key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch& batch) {
  observer_.key_value(layer, k, v, batch);
  collector_.key_value(layer, v);
}

bool Calibration::keeps_expert_tokens() const {
  const auto& layers = source_.spec.layers;
  return std::any_of(layers.begin(), layers.end(), [this](const auto& layer) { return keeps_tokens(layer); });
}

void Calibration::choose_ranges(const layers::LayerSpec& layer, recipes::LayerStatistics& statistics) {
  const auto found = observer_.maxima().find(layer.index);
  // Ranks of one data group have seen the same inputs, so each counts for itself; experts' inputs are with their owners.
  const auto range = [&](int key, recipes::Format format, float amax, parallel::Communicator& ranks) {
    std::vector<int64_t> counts(kernels::kMagnitudeBins, 0);
    if (found != observer_.maxima().end())
      if (const auto mine = found->second.magnitudes.find(key); mine != found->second.magnitudes.end()) counts = mine->second;
    ranks.all_reduce_sum(std::span<int64_t>(counts));
    return recipe_.range.activations == "percentile" ? recipes::percentile_amax(counts, recipe_.range.percentile, amax)
                                                     : recipes::mse_amax(format, counts, amax);
  };
  const auto static_format = [&](const std::function<bool(const layers::LinearSpec&)>& wanted) {
    for (const auto& linear : layer.linears)
      if (const recipes::Encoding& kind = plan_.decisions.at(linear.module).encoding;
          wanted(linear) && kind.is_quantized() && recipes::has_input_scale(kind))
        return kind.format;
    return recipes::Format::kNone;
  };
  for (auto& [group, amax] : statistics.input_amax) {
    const recipes::Format format =
        static_format([&, key = group](const auto& linear) { return !linear.is_routed() && linear.input_group == key; });
    if (format != recipes::Format::kNone) amax = range(group, format, amax, mesh_.data());
  }
  for (const bool up : {true, false}) {
    const recipes::Format format = static_format([&](const auto& linear) { return linear.is_routed() && linear.feeds_down == up; });
    if (format == recipes::Format::kNone || statistics.experts.empty()) continue;
    float amax = 0;
    for (const auto& expert : statistics.experts) amax = std::max(amax, up ? expert.up_input_amax : expert.down_input_amax);
    const float chosen = range(up ? recipes::Observer::kExpertsUp : recipes::Observer::kExpertsDown, format, amax, mesh_.stage());
    for (auto& expert : statistics.experts) {
      float& kept = up ? expert.up_input_amax : expert.down_input_amax;
      kept = std::min(kept, chosen);
    }
  }
}

int64_t Calibration::statistics_bytes(const layers::LayerSpec& layer) const {
  const DType operand = recipe_.compute == "fp32" ? DType::kF32 : DType::kBF16;
  int64_t kept = 0, largest = 0;
  for (const layers::SmoothingGroup& group : groups_.at(layer.index)) {
    const int64_t channels = group.linears.empty() ? source_.spec.hidden : layer.linears[static_cast<size_t>(group.linears.front())].in;
    const recipes::InputNeeds kept_of_it = needs(layer, group.input_group);
    kept += recipes::ActivationCollector::bytes(kept_of_it, channels, mesh_.stage().size(), operand);
    const int64_t whole = kept_of_it.gram ? recipes::Gram::bytes(channels, 1) * 2 : 0;
    largest = std::max(largest, whole);
    if (mesh_.data().size() > 1) largest = std::max(largest, longest_row_ * channels * dtype_bytes(operand));
    if (!smoothing(layer).find(group.input_group)) continue;
    // While a group is solved: its Gram matrix whole, once more in the order of feedback, and this rank's rows three times in f32.
    int64_t rows = 0;
    for (const int linear : group.linears) rows += layer.linears[static_cast<size_t>(linear)].out;
    largest = std::max(largest, whole + rows / mesh_.stage().size() * channels * 12);
  }
  if (const auto* moe = layer.moe()) kept += static_cast<int64_t>(moe->experts.size()) * (source_.spec.hidden + moe->intermediate) * 8;
  if (const auto* moe = layer.moe(); moe && smoothing(layer).experts) {
    // One expert at a time: its matrices as f32 and what solving one of them takes; the Gram matrix of its widest input, whole and in the
    // order of feedback; and the rows and tokens that factors are tried on.
    const int64_t matrix = source_.spec.hidden * moe->intermediate * 4, wide = std::max(source_.spec.hidden, moe->intermediate);
    const int64_t grams = recipes::Gram::bytes(wide, 1) * (recipe_.method == "awq" && recipe_.awq.error_feedback ? 2 : 1);
    constexpr int64_t kTriedRows = 4 * 256 + 2 * 512;
    largest = std::max(largest, 8 * matrix + grams + kTriedRows * wide * 4);
  }
  return kept + largest;
}

int64_t Calibration::visit_bytes() const {
  if (!keeps_expert_tokens()) return 0;
  int64_t widest = 0;
  for (const auto& layer : source_.spec.layers)
    if (const auto* moe = layer.moe()) widest = std::max(widest, source_.spec.hidden + moe->intermediate);
  return 2 * widest * (recipe_.compute == "fp32" ? 4 : 2);  // as they came, and in order
}

void Calibration::experts_forwarded(const ExpertChunk& chunk, bool stays) {
  const layers::LayerSpec& layer = *chunk.layer;
  if (!keeps_tokens(layer)) return;
  std::unique_ptr<ExpertInputs> seen;
  if (reused_) {
    if (chunk.broken || error_) return;
    keep_error(error_, [&] { seen = reused_->experts(layer); });
    if (!seen) return;
  } else {
    const DType operand = recipe_.compute == "fp32" ? DType::kF32 : DType::kBF16;
    seen = gather_expert_inputs(chunk, collector_.take_expert_tokens(layer), mesh_, operand);
  }
  const bool is_settled = settled_.count(layer.index) > 0;
  if (recipe_.keep_gram && !reused_ && !is_settled) keep_experts(chunk, *seen);
  if (!smoothing(layer).experts) return;
  auto solver = expert_solvers_.find(layer.index);
  if (solver == expert_solvers_.end())
    solver = expert_solvers_.try_emplace(layer.index, layer, smoothing(layer), plan_.decisions, recipe_, mesh_, seconds_).first;
  if (is_settled) {
    collector_.forget(layer);
    return solver->second.look_again(std::move(seen));
  }
  const auto& groups = smoothing(layer).groups;
  const auto group = std::find_if(groups.begin(), groups.end(), [](const auto& plan) { return plan.group.feeds_experts; });
  const recipes::InputStatistics read = inputs().channels(layer, group->group.input_group);
  // What an earlier run kept can be read again at any time.
  const bool keeps = stays || reused_;
  const auto look = [&] {
    solver->second.look(
        chunk, std::move(seen), read, [&](int e) { return expert_weights(chunk, e); }, keeps);
  };
  if (reused_)
    keep_error(error_, look);
  else
    look();
}

recipes::InputSource& Calibration::inputs() {
  if (reused_) return *reused_;
  return collector_;
}

void Calibration::search_layer(const LayerTensors& tensors, recipes::LayerStatistics& statistics) {
  const layers::LayerSpec& layer = *tensors.layer;
  ExpertLosses losses;
  const auto experts = expert_solvers_.find(layer.index);
  if (experts != expert_solvers_.end()) losses = experts->second.merge();
  solver_.emplace(tensors, smoothing(layer), plan_.decisions, recipe_, mesh_.stage(), inputs(), seconds_,
                  [this](const layers::LinearSpec& linear, const Tensor& weight, const Tensor& row_scales, int64_t first_row,
                         const recipes::LinearScales& scales) { write_rows(linear, weight, row_scales, first_row, scales); });
  solver_->solve(losses, statistics);
  if (recipe_.awq.powers_of_two && mesh_.stage().rank() == 0) solver_->record(folds_);
  choices_.insert(choices_.end(), solver_->choices().begin(), solver_->choices().end());
  if (experts != expert_solvers_.end()) {
    experts->second.settle(solver_->expert_factors(), statistics);
    settled_[layer.index] = statistics;
  }
  if (recipe_.kv_cache != "none" && layer.attention()) fold_values(layer, statistics);
}

void Calibration::fold_values(const layers::LayerSpec& layer, recipes::LayerStatistics& statistics) {
  const layers::AttentionHeads& heads = *layer.attention();
  Tensor factors;  // of every channel of the values
  for (const GroupPlan& plan : smoothing(layer).groups) {
    const layers::Fold& fold = plan.group.fold;
    const bool is_output =
        fold.kind == layers::Fold::Kind::kRows && layer.linears[static_cast<size_t>(fold.linear)].module.rfind(heads.module, 0) == 0;
    const Tensor rows = is_output ? solver_->row_factors(fold.linear) : Tensor();
    if (!rows.defined()) continue;
    factors = Tensor::empty({heads.kv_heads * heads.v_head_dim}, DType::kF32);
    for (int64_t g = 0; g < heads.kv_heads; ++g)
      for (int64_t d = 0; d < heads.v_head_dim; ++d)
        factors.data<float>()[g * heads.v_head_dim + d] =
            rows.data<float>()[fold.rows[static_cast<size_t>(g * (heads.heads / heads.kv_heads) * heads.v_head_dim + d)]];
  }
  if (!factors.defined()) return;
  float amax = -1;
  for (size_t c = 0; c < statistics.value_channel_amax.size(); ++c)
    amax = std::max(amax, statistics.value_channel_amax[c] * factors.data<float>()[c]);
  statistics.value_amax = amax;
  auto& channels = statistics.value_channels;
  for (size_t c = 0; c < channels.sums.size(); ++c) {
    const float factor = factors.data<float>()[c];
    channels.sums[c] = std::llrint(static_cast<double>(channels.sums[c]) * static_cast<double>(factor));
    channels.minima[c] *= factor;
    channels.maxima[c] *= factor;
  }
}

void Calibration::write_searched_experts(const ExpertChunk& chunk) {
  const layers::LayerSpec& layer = *chunk.layer;
  ExpertSolver& solver = expert_solvers_.at(layer.index);
  const recipes::LayerStatistics& statistics = settled_.at(layer.index);
  const auto scales_of = [&](int linear) { return recipes::weight_scales(layer, plan_.decisions, statistics, linear); };
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e) {
    const auto& specs = chunk.specs_of(e);
    for (size_t i = 0; i < specs.size(); ++i) {
      const Tensor& stored = chunk.of(e)[i];
      if (!specs[i].is_weight()) output_.push(specs[i].name, (specs[i].expert == layers::kAllExperts ? e : 0) * stored.row_bytes(), stored);
    }
    solver.write(
        static_cast<int>(e), expert_weights(chunk, static_cast<int>(e)), scales_of,
        [&](const layers::LinearSpec& linear, const Tensor& weight, const Tensor& row_scales, const recipes::LinearScales& scales) {
          const recipes::Encoding& encoding = plan_.decisions.at(linear.module).encoding;
          push_rows(linear, recipes::encode_expert(encoding, linear, weight, row_scales, scales, quotient()), linear.is_stacked() ? e : 0);
          for (const auto& part : recipes::encoded_tensors(encoding, linear))
            if (owner_writes(encoding, linear, part)) output_.push(part.tensor.name, 0, recipes::constant_part(part, linear, scales));
        });
    if (recipe_.awq.powers_of_two) solver.record(static_cast<int>(e), folds_);
    if (solver.is_starved(static_cast<int>(e)))
      expert_notes_.push_back({layer.moe()->module + "." + std::to_string(e),
                               "fewer tokens than channels reached it: its weights are rounded without error feedback"});
  }
  // The layer's last chunk: nothing of it is asked for again.
  if (chunk.experts.end < static_cast<int64_t>(layer.moe()->experts.size())) return;
  expert_solvers_.erase(layer.index);
  settled_.erase(layer.index);
}

}  // namespace ptq::runner
