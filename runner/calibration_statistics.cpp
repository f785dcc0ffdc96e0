// The part of a calibration run that keeps what it saw for later runs: one layer's files as its window is done.

#include <algorithm>

#include "checkpoint/files.h"
#include "runner/calibration.h"

namespace ptq::runner {

CalibrationResult Calibration::take_result() {
  CalibrationResult mine;
  mine.notes = std::move(expert_notes_);
  mine.folds = std::move(folds_);
  // The rest is the same on all ranks of the stage.
  if (mesh_.stage().rank() == 0) {
    mine.statistics = std::move(stats_);
    mine.notes.insert(mine.notes.end(), notes_.begin(), notes_.end());
    mine.coverage = std::move(coverage_);
    mine.choices = std::move(choices_);
  }
  expert_notes_.clear();
  folds_ = {};
  stats_ = {};
  notes_.clear();
  coverage_.clear();
  choices_.clear();
  return mine;
}

void Calibration::keep_statistics(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics) {
  for (size_t i = 0; i < layer.linears.size(); ++i) {
    const auto& linear = layer.linears[i];
    if (linear.is_routed() && !linear.is_stacked()) {  // one array a projection, by expert
      const std::string leaf = linear.module.substr(linear.module.rfind('.') + 1);
      stats_.arrays[layer.moe()->module + "/" + leaf + "/weight_amax"].push_back(statistics.weight_amax[i]);
      continue;
    }
    stats_.arrays[linear.module + "/weight_amax"] = {statistics.weight_amax[i]};
    if (const auto input = statistics.input_amax.find(linear.input_group); input != statistics.input_amax.end() && !linear.is_routed())
      stats_.arrays[linear.module + "/input_amax"] = {input->second};
  }
  for (const auto& expert : tokens_ > 0 ? statistics.experts : std::vector<recipes::ExpertStatistics>{}) {
    const std::string& module = layer.moe()->module;
    stats_.arrays[module + "/tokens"].push_back(static_cast<float>(expert.tokens));
    stats_.arrays[module + "/forced_tokens"].push_back(static_cast<float>(expert.forced));
    stats_.arrays[module + "/up_input_amax"].push_back(expert.up_input_amax);
    stats_.arrays[module + "/down_input_amax"].push_back(expert.down_input_amax);
  }
  if (layer.attention() && statistics.key_amax >= 0) {
    stats_.arrays[layer.attention()->module + "/key_amax"] = {statistics.key_amax};
    stats_.arrays[layer.attention()->module + "/value_amax"] = {statistics.value_amax};
  }
  for (const auto& [what, channels] : {std::pair("key", &statistics.key_channels), std::pair("value", &statistics.value_channels)}) {
    if (channels->sums.empty()) continue;
    const std::string name = layer.attention()->module + "/" + what + "_channel_";
    stats_.arrays[name + "minima"] = channels->minima;
    stats_.arrays[name + "maxima"] = channels->maxima;
    stats_.integers[name + "sums"] = channels->sums;
    for (const int64_t sum : channels->sums)
      stats_.arrays[name + "means"].push_back(
          static_cast<float>(static_cast<double>(sum) / recipes::ChannelStatistics::kOne / static_cast<double>(tokens_)));
  }
}

std::vector<float> Calibration::merge_value_amax(const layers::LayerSpec& layer) {
  const layers::AttentionHeads* attention = layer.attention();
  if (!attention) return {};
  std::vector<float> all(static_cast<size_t>(attention->kv_heads * attention->v_head_dim), 0.0f);
  const Tensor mine = collector_.value_amax(layer);
  const int64_t first = first_kv_head(*attention) * attention->v_head_dim;
  if (mine.defined()) std::copy_n(mine.data<float>(), mine.numel(), all.begin() + first);
  mesh_.stage().all_reduce_max(std::span<float>(all));
  return all;
}

void Calibration::keep_details(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics) {
  if (reused_) {
    if (mesh_.stage().rank() == 0) keep_error(error_, [&] { copy_details(layer, statistics); });
    return;
  }
  const bool writes = mesh_.stage().rank() == 0;
  const StatisticsFiles& files = statistics_plan_.files;
  LayerChannels channels;
  channels.value_amax = statistics.value_channel_amax;
  for (const layers::SmoothingGroup& group : groups_.at(layer.index))
    channels.groups[group.input_group] = collector_.channels(layer, group.input_group);
  if (const auto* moe = layer.moe()) {
    const auto experts = static_cast<int64_t>(moe->experts.size());
    const recipes::ActivationCollector::ExpertChannels mine = collector_.expert_channels(layer);
    const auto merged = [&](const Tensor& part, int64_t width) {
      Tensor all = part.defined() ? part : Tensor::zeros({experts, width}, DType::kF32);
      mesh_.stage().all_reduce_max(std::span<float>(all.data<float>(), static_cast<size_t>(all.numel())));
      return all;
    };
    channels.experts = {merged(mine.up, source_.spec.hidden), merged(mine.down, moe->intermediate)};
  }
  if (writes) keep_error(error_, [&] { write_channels(files.layer(layer.index), statistics_plan_.run, layer, channels); });
  if (!recipe_.keep_gram) return;
  std::optional<checkpoint::StatsWriter> writer;
  if (writes) keep_error(error_, [&] { writer.emplace(files.grams(layer.index)).put_attribute("run", statistics_plan_.run); });
  for (const layers::SmoothingGroup& group : groups_.at(layer.index)) {
    const recipes::InputStatistics input = collector_.gather(layer, group.input_group);
    if (writer) keep_error(error_, [&] { put_group(*writer, group_name(layer, group), input); });
  }
  if (writer) keep_error(error_, [&] { writer->finish(); });
}

void Calibration::copy_details(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics) {
  const StatisticsFiles &from = reused_->files(), &to = statistics_plan_.files;
  checkpoint::copy_file(from.layer(layer.index), to.layer(layer.index));
  if (!recipe_.keep_gram) return;
  checkpoint::copy_file(from.grams(layer.index), to.grams(layer.index));
  for (size_t e = 0; e < statistics.experts.size(); ++e)
    if (const auto expert = static_cast<int64_t>(e); statistics.experts[e].tokens > 0)
      checkpoint::copy_file(from.expert(layer.index, expert), to.expert(layer.index, expert));
}

void Calibration::keep_experts(const ExpertChunk& chunk, const ExpertInputs& inputs) {
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e)
    if (const int expert = static_cast<int>(e); inputs.tokens(expert) > 0)
      keep_error(error_, [&] { write_expert(statistics_plan_.files.expert(chunk.layer->index, e), statistics_plan_.run, inputs, expert); });
}

}  // namespace ptq::runner
