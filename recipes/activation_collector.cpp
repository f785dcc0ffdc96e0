#include "recipes/activation_collector.h"

#include <algorithm>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::recipes {

namespace {

/// Tokens that tell what rounding activations costs.
constexpr int64_t kSampleTokens = 2048;

Tensor copy_of(const Tensor& x) {
  Tensor copy = Tensor::empty(x.shape(), x.dtype());
  std::copy_n(x.raw(), x.bytes(), copy.raw());
  return copy;
}

}  // namespace

ActivationCollector::ActivationCollector(CollectorOptions options, SearchSeconds& seconds)
    : options_(std::move(options)), seconds_(seconds) {
  int64_t tokens = 0;
  for (const int64_t length : options_.row_lengths) {
    first_tokens_.push_back(tokens);
    tokens += length;
  }
  first_tokens_.push_back(tokens);
  sample_stride_ = std::max<int64_t>(1, (tokens + kSampleTokens - 1) / kSampleTokens);
}

Tensor ActivationCollector::shared_row(int64_t row, const Tensor& mine) {
  // Row r of all calibration rows is with data rank r mod D.
  const int ranks = options_.data->size(), owner = static_cast<int>(row % ranks);
  if (ranks == 1) return mine;
  Tensor tokens = mine;
  if (owner != options_.data->rank()) {
    const Shape shape{options_.row_lengths[static_cast<size_t>(row)], mine.dim(1)};
    const int64_t bytes = element_count(shape) * dtype_bytes(mine.dtype());
    if (!row_.defined() || row_.bytes() < bytes) row_ = Tensor::empty({bytes}, DType::kU8);
    tokens = row_.as(shape, mine.dtype());
  }
  options_.data->broadcast(tokens.raw(), tokens.bytes(), owner);
  return tokens;
}

void ActivationCollector::linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch& batch) {
  const InputNeeds needs = options_.input_needs(layer, input_group);
  if (!needs.channels && !needs.gram && !needs.sample) return;
  const Stopwatch watch(seconds_.gram);
  Collected& kept = groups_[{layer.index, input_group}];
  const int64_t channels = x.dim(1);
  if (!kept.amax.defined()) {
    kept.amax = Tensor::zeros({channels}, DType::kF32);
    kept.abs_sums.assign(static_cast<size_t>(channels), 0);
    if (needs.gram) kept.gram.emplace(channels, options_.stage->size(), options_.stage->rank());
  }
  kernels::column_amax(x, kept.amax);
  kernels::column_sums(x, true, kept.abs_sums);
  if (!needs.gram && !needs.sample) return;
  size_t next = 0;  // of this rank's rows
  for (int64_t row = batch.all_rows.begin; row < batch.all_rows.end; ++row) {
    const bool is_mine = row % options_.data->size() == options_.data->rank();
    const Tensor tokens = shared_row(row, is_mine ? x.rows(batch.starts[next], batch.starts[next + 1]) : x.rows(0, 0));
    if (is_mine) ++next;
    const int64_t length = tokens.dim(0);
    if (kept.gram) kept.gram->add(tokens);
    if (!needs.sample) continue;
    const int64_t first = first_tokens_[static_cast<size_t>(row)];
    for (int64_t t = (sample_stride_ - first % sample_stride_) % sample_stride_; t < length; t += sample_stride_)
      kept.sample.push_back(copy_of(tokens.rows(t, t + 1)));
  }
}

void ActivationCollector::key_value(const layers::LayerSpec& layer, const Tensor& v) {
  Tensor& amax = value_amax_[layer.index];
  if (!amax.defined()) amax = Tensor::zeros({v.dim(1)}, DType::kF32);
  kernels::column_amax(v, amax);
}

void ActivationCollector::expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x,
                                       const layers::ExpertVisits& visits) {
  if (visits.forced) return;
  const bool feeds_down = layer.linears[static_cast<size_t>(linear)].feeds_down;
  ExpertChannels& channels = expert_channels_[layer.index];
  Tensor& amaxes = feeds_down ? channels.up : channels.down;
  if (!amaxes.defined()) amaxes = Tensor::zeros({static_cast<int64_t>(layer.moe()->experts.size()), x.dim(1)}, DType::kF32);
  Tensor amax = amaxes.rows(expert, expert + 1).reshaped({x.dim(1)});
  if (x.dim(0) > 0) kernels::column_amax(x, amax);
  if (!options_.keeps_expert_tokens(layer)) return;
  ExpertTokens& kept = experts_[layer.index][expert];
  if (!feeds_down) {
    kept.inner.push_back(copy_of(x));
    return;
  }
  kept.inputs.push_back(copy_of(x));
  kept.positions.insert(kept.positions.end(), visits.positions, visits.positions + x.dim(0));
  kept.weights.insert(kept.weights.end(), visits.weights, visits.weights + x.dim(0));
}

InputStatistics ActivationCollector::channels(const layers::LayerSpec& layer, int input_group) {
  InputStatistics merged;
  const auto found = groups_.find({layer.index, input_group});
  require(found != groups_.end(), "an input group that was not observed is asked for");
  Collected& kept = found->second;
  std::vector<int64_t> sums = kept.abs_sums;
  options_.data->all_reduce_sum(std::span<int64_t>(sums));
  const auto count = static_cast<int64_t>(sums.size());
  merged.amax = copy_of(kept.amax);
  options_.stage->all_reduce_max(std::span<float>(merged.amax.data<float>(), sums.size()));
  merged.mean_abs = Tensor::empty({count}, DType::kF32);
  const double tokens = std::max<double>(1.0, static_cast<double>(first_tokens_.back()));
  for (size_t c = 0; c < sums.size(); ++c)
    merged.mean_abs.data<float>()[c] = static_cast<float>(static_cast<double>(sums[c]) / kernels::kColumnSumUnits / tokens);
  return merged;
}

InputStatistics ActivationCollector::gather(const layers::LayerSpec& layer, int input_group) {
  InputStatistics merged = channels(layer, input_group);
  const Collected& kept = groups_.at({layer.index, input_group});
  if (kept.gram) merged.gram = kept.gram->gather(*options_.stage);
  if (kept.sample.empty()) return merged;
  const Tensor& first = kept.sample.front();
  merged.sample = Tensor::empty({static_cast<int64_t>(kept.sample.size()), first.dim(1)}, first.dtype());
  for (size_t i = 0; i < kept.sample.size(); ++i)
    std::copy_n(kept.sample[i].raw(), first.bytes(), merged.sample.raw() + static_cast<int64_t>(i) * first.bytes());
  return merged;
}

InputStatistics ActivationCollector::take(const layers::LayerSpec& layer, int input_group, const InputNeeds& needs) {
  const auto found = groups_.find({layer.index, input_group});
  require(found != groups_.end(), "an input group that was not observed is asked for");
  if (!needs.gram) found->second.gram.reset();
  if (!needs.sample) found->second.sample.clear();
  InputStatistics merged = gather(layer, input_group);
  groups_.erase(found);
  return merged;
}

Tensor ActivationCollector::value_amax(const layers::LayerSpec& layer) {
  const auto found = value_amax_.find(layer.index);
  return found == value_amax_.end() ? Tensor() : found->second;
}

ActivationCollector::ExpertChannels ActivationCollector::expert_channels(const layers::LayerSpec& layer) {
  const auto found = expert_channels_.find(layer.index);
  return found == expert_channels_.end() ? ExpertChannels{} : found->second;
}

std::map<int, ExpertTokens> ActivationCollector::take_expert_tokens(const layers::LayerSpec& layer) {
  std::map<int, ExpertTokens> tokens;
  if (const auto found = experts_.find(layer.index); found != experts_.end()) tokens.swap(found->second);
  experts_.erase(layer.index);
  return tokens;
}

void ActivationCollector::forget(const layers::LayerSpec& layer) {
  std::erase_if(groups_, [&](const auto& entry) { return entry.first.first == layer.index; });
  value_amax_.erase(layer.index);
  expert_channels_.erase(layer.index);
  experts_.erase(layer.index);
}

int64_t ActivationCollector::bytes(const InputNeeds& needs, int64_t channels, int64_t stage_ranks, DType operand) {
  int64_t bytes = needs.channels || needs.gram || needs.sample ? channels * 12 : 0;
  if (needs.gram) bytes += Gram::bytes(channels, stage_ranks);
  if (needs.sample) bytes += kSampleTokens * channels * dtype_bytes(operand);
  return bytes;
}

}  // namespace ptq::recipes
