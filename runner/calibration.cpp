#include "runner/calibration.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/ops.h"
#include "recipes/kv_cache.h"
#include "recipes/range.h"

namespace ptq::runner {

namespace {

Tensor scalar(float value) {
  Tensor tensor = Tensor::empty({}, DType::kF32);
  *tensor.data<float>() = value;
  return tensor;
}

/// Input groups are numbered by what they feed, so a layer with few linears may have a number above their count.
size_t group_count(const layers::LayerSpec& layer) {
  size_t count = 0;
  for (const auto& linear : layer.linears) count = std::max(count, static_cast<size_t>(linear.input_group) + 1);
  return count;
}

size_t expert_count(const layers::LayerSpec& layer) { return layer.moe() ? layer.moe()->experts.size() : 0; }

}  // namespace

float checked_amax(const Tensor& rows, const std::string& name, const std::string& file) {
  if (!is_float(rows.dtype()) || rows.numel() == 0) return 0.0f;
  const kernels::Amax found = kernels::amax(rows);
  if (found.non_finite_row >= 0)
    throw data_error("NaN or Inf in the weights: tensor " + name, file, "the checkpoint is damaged: download or convert it again");
  return found.value;
}

Calibration::Calibration(const SourceModel& source, const recipes::Recipe& recipe, const ExportPlan& plan, const parallel::Mesh& mesh,
                         OutputStream& output, const std::vector<int64_t>& row_lengths, StatisticsPlan statistics)
    : source_(source),
      recipe_(recipe),
      plan_(plan),
      mesh_(mesh),
      output_(output),
      statistics_plan_(std::move(statistics)),
      reused_(statistics_plan_.reused),
      tokens_(reused_ ? reused_->tokens() : std::accumulate(row_lengths.begin(), row_lengths.end(), int64_t{0})),
      longest_row_(row_lengths.empty() ? 0 : *std::max_element(row_lengths.begin(), row_lengths.end())),
      observer_(recipes::kv_format(recipe.kv_cache) == recipes::KvFormat::kNvfp4Affine, recipe.range.activations != "amax"),
      collector_(collector_options(row_lengths), seconds_) {
  for (const auto& layer : source.spec.layers) {
    std::vector<recipes::ScaleNote> notes;
    smoothing_[layer.index] = recipes::plan_smoothing(layer, plan.decisions, recipe, notes);
    groups_[layer.index] = layers::smoothing_groups(layer);
    if (mesh.stage().rank() == 0 && mesh.pipeline_rank() == 0) notes_.insert(notes_.end(), notes.begin(), notes.end());
  }
}

void Calibration::loaded(const LayerTensors& tensors) {
  std::vector<float>& amax = weight_amax_[tensors.layer->index];
  amax.assign(tensors.layer->linears.size(), 0.0f);
  for (size_t i = 0; i < tensors.specs.size(); ++i) {
    const auto& spec = tensors.specs[i];
    const float found = checked_amax(tensors.shares[i], spec.name, source_.reader->folder() + "/" + source_.reader->at(spec.name).file);
    if (spec.is_weight()) amax[static_cast<size_t>(spec.linear)] = found;
  }
  if (!reused_) return;
  const auto& plans = smoothing(*tensors.layer).groups;
  const bool uses_grams = std::any_of(plans.begin(), plans.end(), [](const auto& plan) { return plan.needs.gram || plan.needs.sample; });
  reused_->load(*tensors.layer, uses_grams && mesh_.stage().rank() == 0);
}

std::optional<Error> Calibration::error() {
  if (error_) return error_;
  if (observer_.error()) return observer_.error();
  return output_.error();
}

std::vector<recipes::LayerStatistics> Calibration::merge(const std::vector<LayerTensors>& layers) {
  // One vector of all maxima of the window: weights per linear, inputs per group, keys, values, experts' inputs; -1 where nothing was seen.
  std::vector<float> maxima;
  std::vector<int64_t> counts;
  static const recipes::Observer::LayerMaxima kNothing;
  for (const auto& tensors : layers) {
    const auto& amax = weight_amax_.at(tensors.layer->index);
    maxima.insert(maxima.end(), amax.begin(), amax.end());
    const auto found = observer_.maxima().find(tensors.layer->index);
    const auto& seen = found != observer_.maxima().end() ? found->second : kNothing;
    for (size_t group = 0; group < group_count(*tensors.layer); ++group) {
      const auto at = seen.input_amax.find(static_cast<int>(group));
      maxima.push_back(at != seen.input_amax.end() ? at->second : -1);
    }
    maxima.push_back(seen.key_amax);
    maxima.push_back(seen.value_amax);
    for (size_t e = 0; e < expert_count(*tensors.layer); ++e) {
      const recipes::ExpertStatistics expert = seen.experts.empty() ? recipes::ExpertStatistics{} : seen.experts[e];
      maxima.insert(maxima.end(), {expert.up_input_amax, expert.down_input_amax});
      counts.insert(counts.end(), {expert.tokens, expert.forced});
    }
  }
  mesh_.stage().all_reduce_max(std::span<float>(maxima));
  mesh_.stage().all_reduce_sum(std::span<int64_t>(counts));

  std::vector<recipes::LayerStatistics> merged;
  auto next = maxima.begin();
  auto next_count = counts.begin();
  for (const auto& tensors : layers) {
    const layers::LayerSpec& layer = *tensors.layer;
    recipes::LayerStatistics statistics;
    for (size_t i = 0; i < layer.linears.size(); ++i) statistics.weight_amax.push_back(*next++);
    for (size_t group = 0; group < group_count(layer); ++group, ++next)
      if (*next >= 0) statistics.input_amax[static_cast<int>(group)] = *next;
    statistics.key_amax = *next++;
    statistics.value_amax = *next++;
    for (size_t e = 0; e < expert_count(layer); ++e) {
      recipes::ExpertStatistics expert;
      expert.up_input_amax = *next++;
      expert.down_input_amax = *next++;
      expert.tokens = *next_count++;
      expert.forced = *next_count++;
      statistics.experts.push_back(expert);
    }
    if (reused_) {
      reused_->fill(layer, statistics);
    } else {
      merge_channels(layer, statistics);
      if (is_observed()) statistics.value_channel_amax = merge_value_amax(layer);
    }
    merged.push_back(std::move(statistics));
  }
  return merged;
}

int64_t Calibration::first_kv_head(const layers::AttentionHeads& attention) const {
  const int64_t ranks = mesh_.shape().tensor, rank = mesh_.tensor_rank();
  return attention.kv_heads < ranks ? rank * attention.kv_heads / ranks : parallel::even_share(attention.kv_heads, ranks, rank).begin;
}

void Calibration::merge_channels(const layers::LayerSpec& layer, recipes::LayerStatistics& merged) {
  const layers::AttentionHeads* attention = layer.attention();
  if (!attention || recipes::kv_format(recipe_.kv_cache) != recipes::KvFormat::kNvfp4Affine) return;
  static const recipes::Observer::LayerMaxima kNothing;
  const auto found = observer_.maxima().find(layer.index);
  const auto& seen = found != observer_.maxima().end() ? found->second : kNothing;
  // A kv head that several tensor ranks hold counts on the first of them.
  const int64_t ranks = mesh_.shape().tensor, rank = mesh_.tensor_rank();
  const int64_t first_head = first_kv_head(*attention);
  const bool is_first = attention->kv_heads >= ranks || rank == 0 || (rank - 1) * attention->kv_heads / ranks != first_head;
  const auto merge_one = [&](const recipes::ChannelStatistics& mine, int64_t head_dim, recipes::ChannelStatistics& all) {
    const auto width = static_cast<size_t>(attention->kv_heads * head_dim), begin = static_cast<size_t>(first_head * head_dim);
    constexpr float kLeast = std::numeric_limits<float>::lowest();
    all.sums.assign(width, 0);
    std::vector<float> extremes(2 * width, kLeast);  // maxima, then minima negated
    if (is_first)
      for (size_t c = 0; c < mine.sums.size(); ++c) {
        all.sums[begin + c] = mine.sums[c];
        extremes[begin + c] = mine.maxima[c];
        extremes[width + begin + c] = -mine.minima[c];
      }
    mesh_.stage().all_reduce_sum(std::span<int64_t>(all.sums));
    mesh_.stage().all_reduce_max(std::span<float>(extremes));
    all.maxima.assign(extremes.begin(), extremes.begin() + static_cast<std::ptrdiff_t>(width));
    for (size_t c = 0; c < width; ++c) all.minima.push_back(-extremes[width + c]);
  };
  merge_one(seen.key_channels, attention->head_dim, merged.key_channels);
  merge_one(seen.value_channels, attention->v_head_dim, merged.value_channels);
}

void Calibration::window_done(const std::vector<LayerTensors>& layers) {
  std::vector<recipes::LayerStatistics> merged = merge(layers);
  merged_amax_.clear();
  for (size_t i = 0; i < layers.size(); ++i) {
    const layers::LayerSpec& layer = *layers[i].layer;
    weight_amax_.erase(layer.index);
    if (needs_layer_first(layer)) merged_amax_[layer.index] = merged[i].weight_amax;
    if (layer.moe() && tokens_ > 0) {
      const recipes::LayerCoverage coverage = recipes::coverage_of(layer, merged[i], recipe_.moe);
      if (const std::string words = recipes::describe(coverage, recipe_.moe); !words.empty() && mesh_.stage().rank() == 0)
        notes_.push_back({coverage.module, words});
      if (recipe_.moe.unseen == "fail" && !coverage.starved.empty() && !error_) {
        // Every rank of the stage knows; the others learn of it where all agree on the next window.
        try {
          recipes::check_coverage({coverage}, recipe_);
        } catch (const Error& error) {
          error_ = error;
        }
      }
      coverage_.push_back(coverage);
    }
    write_layer(layers[i], merged[i]);
  }
}

void Calibration::write_layer(const LayerTensors& tensors, recipes::LayerStatistics& statistics) {
  const layers::LayerSpec& layer = *tensors.layer;
  if (mesh_.stage().rank() == 0) keep_statistics(layer, statistics);
  if (is_observed()) keep_details(layer, statistics);
  if (recipe_.range.activations != "amax") choose_ranges(layer, statistics);
  if (!smoothing(layer).groups.empty()) search_layer(tensors, statistics);
  collector_.forget(layer);
  if (reused_) reused_->forget(layer);
  const auto scales = recipes::minmax_scales(layer, plan_.decisions, statistics, notes_);
  for (size_t i = 0; i < tensors.specs.size(); ++i) {
    const auto& spec = tensors.specs[i];
    const Tensor& share = tensors.shares[i];
    const int64_t first_row = tensors.placements[i].share.begin;
    if (spec.is_weight() && encoding_of(layer, spec.linear).is_quantized()) {
      const layers::LinearSpec& linear = layer.linears[static_cast<size_t>(spec.linear)];
      recipes::LinearScales constants = scales[static_cast<size_t>(spec.linear)];
      if (solver_) constants.pre_quant_scale = solver_->stored_factors(spec.linear);
      if (share.dim(0) > 0 && !(solver_ && solver_->is_written(spec.linear))) write_rows(linear, share, Tensor(), first_row, constants);
      if (share.dim(0) > 0 && first_row == 0) write_constants(linear, constants, false);
    } else if (share.numel() > 0) {
      const bool replaced = solver_ && solver_->replaced().count(spec.name) > 0;
      const Tensor rows = replaced ? solver_->replaced().at(spec.name).rows(first_row, first_row + share.dim(0)) : share;
      output_.push(spec.name, first_row * share.row_bytes(), rows);
    }
  }
  solver_.reset();
  if (mesh_.stage().rank() != 0) return;
  const bool experts_searched = smoothing(layer).experts;
  for (size_t i = 0; i < layer.linears.size(); ++i)
    if (layer.linears[i].is_routed()) write_constants(layer.linears[i], scales[i], experts_searched);
  if (const auto format = recipes::kv_format(recipe_.kv_cache); format != recipes::KvFormat::kNone && layer.attention()) {
    const recipes::KvScales kv = recipes::kv_scales(format, *layer.attention(), statistics, tokens_, notes_);
    const std::vector<Tensor> values{scalar(kv.key), scalar(kv.value), kv.key_bias, kv.value_bias};
    const auto tensors_of = recipes::kv_tensors(plan_.metadata.dialect, format, *layer.attention());
    for (size_t i = 0; i < tensors_of.size(); ++i) output_.push(tensors_of[i].name, 0, values[i]);
  }
}

const recipes::Encoding& Calibration::encoding_of(const layers::LayerSpec& layer, int linear) const {
  return plan_.decisions.at(layer.linears[static_cast<size_t>(linear)].module).encoding;
}

int64_t Calibration::row_unit(const layers::LayerSpec& layer, const layers::TensorSpec& tensor) const {
  return tensor.is_weight() ? recipes::row_unit(encoding_of(layer, tensor.linear)) : 1;
}

void Calibration::push_rows(const layers::LinearSpec& linear, const std::vector<Tensor>& parts, int64_t first_row) {
  size_t next = 0;
  for (const auto& part : recipes::encoded_tensors(plan_.decisions.at(linear.module).encoding, linear)) {
    if (part.kind != recipes::EncodedTensor::Kind::kRows) continue;
    const Tensor& rows = parts[next++];
    output_.push(part.tensor.name, first_row / part.rows * rows.row_bytes(), rows);
  }
}

kernels::Fp8Quotient Calibration::quotient() const {
  return recipe_.fp8_quotient == "modelopt" ? kernels::Fp8Quotient::kBf16 : kernels::Fp8Quotient::kExact;
}

void Calibration::write_rows(const layers::LinearSpec& linear, const Tensor& share, const Tensor& row_scales, int64_t first_row,
                             const recipes::LinearScales& scales) {
  Tensor found = row_scales;
  const recipes::Encoding& encoding = plan_.decisions.at(linear.module).encoding;
  if (!found.defined() && recipe_.range.weights == "mse" && recipes::has_row_range(encoding.format) && !linear.is_stacked())
    found = recipes::mse_row_scales(encoding, share, scales);
  push_rows(linear, recipes::encode_rows(encoding, linear, share, found, scales, quotient()), first_row);
}

void Calibration::write_constants(const layers::LinearSpec& linear, const recipes::LinearScales& scales, bool left_to_owner) {
  const recipes::Encoding& encoding = plan_.decisions.at(linear.module).encoding;
  if (!encoding.is_quantized()) return;
  for (const auto& part : recipes::encoded_tensors(encoding, linear))
    if (part.kind != recipes::EncodedTensor::Kind::kRows && !(left_to_owner && owner_writes(encoding, linear, part)))
      output_.push(part.tensor.name, 0, recipes::constant_part(part, linear, scales));
}

bool Calibration::owner_writes(const recipes::Encoding& encoding, const layers::LinearSpec& linear, const recipes::EncodedTensor& part) {
  if (linear.is_stacked()) return false;
  return part.kind == recipes::EncodedTensor::Kind::kVector ||
         (encoding.format == recipes::Format::kInt4Fp8 && part.part == ".weight_scale_2");
}

}  // namespace ptq::runner
