#include "runner/layer_statistics.h"

#include <algorithm>

#include "kernels/ops.h"

namespace ptq::runner {

namespace {

using checkpoint::StatsReader;
using checkpoint::StatsWriter;

std::span<const float> numbers(const Tensor& values) { return {values.data<float>(), static_cast<size_t>(values.numel())}; }
std::span<float> room(Tensor& values) { return {values.data<float>(), static_cast<size_t>(values.numel())}; }

std::vector<float> copied(const Tensor& values) { return {numbers(values).begin(), numbers(values).end()}; }

Tensor read_tensor(const StatsReader& reader, const std::string& name, const Shape& shape) {
  Tensor values = Tensor::empty(shape, DType::kF32);
  reader.floats(name, room(values));
  return values;
}

std::string block_name(const std::string& name, size_t block) { return name + "input_gram/" + std::to_string(block); }

/// `name` ends in what separates it from the word for the array.
void put_input(StatsWriter& writer, const std::string& name, const recipes::InputStatistics& input) {
  for (size_t b = 0; b < input.gram.size(); ++b) writer.put(block_name(name, b), numbers(input.gram[b].values));
  Tensor sample = Tensor::zeros({0}, DType::kF32);
  if (input.sample.defined()) {
    sample = Tensor::empty(input.sample.shape(), DType::kF32);
    kernels::convert(input.sample, sample);
  }
  writer.put(name + "input_sample", numbers(sample));
}

void read_input(const StatsReader& reader, const std::string& name, int64_t channels, DType operand, const recipes::InputNeeds& needs,
                recipes::InputStatistics& input) {
  if (needs.gram) {
    const std::vector<parallel::Range> blocks = recipes::gram_blocks(channels);
    for (size_t b = 0; b < blocks.size(); ++b)
      input.gram.push_back({blocks[b], read_tensor(reader, block_name(name, b), {blocks[b].size(), blocks[b].size()})});
  }
  if (!needs.sample) return;
  const std::vector<float> sample = reader.floats(name + "input_sample");
  if (sample.empty() || static_cast<int64_t>(sample.size()) % channels != 0)
    throw data_error("the sampled tokens of " + name + " are incomplete", reader.path(), "calibrate again");
  Tensor exact = Tensor::empty({static_cast<int64_t>(sample.size()) / channels, channels}, DType::kF32);
  std::copy(sample.begin(), sample.end(), exact.data<float>());
  input.sample = exact;
  if (operand == DType::kF32) return;
  input.sample = Tensor::empty(exact.shape(), operand);
  kernels::convert(exact, input.sample);
}

int64_t channels_of(const layers::LayerSpec& layer, const layers::SmoothingGroup& group) {
  if (!group.linears.empty()) return layer.linears[static_cast<size_t>(group.linears.front())].in;
  return layer.linears[static_cast<size_t>(feeding_linears(*layer.moe(), 0).front())].in;
}

int64_t gram_bytes(int64_t channels) { return recipes::Gram::bytes(channels, 1); }

}  // namespace

std::string group_name(const layers::LayerSpec& layer, const layers::SmoothingGroup& group) {
  return group.linears.empty() ? layer.moe()->module : layer.linears[static_cast<size_t>(group.linears.front())].module;
}

void write_channels(const std::string& path, const std::string& run, const layers::LayerSpec& layer, const LayerChannels& channels) {
  checkpoint::Stats stats;
  stats.attributes["run"] = run;
  for (const layers::SmoothingGroup& group : layers::smoothing_groups(layer)) {
    const recipes::InputStatistics& input = channels.groups.at(group.input_group);
    const std::string name = group_name(layer, group);
    stats.arrays[name + "/input_channel_amax"] = copied(input.amax);
    stats.arrays[name + "/input_channel_mean_abs"] = copied(input.mean_abs);
  }
  if (layer.attention()) stats.arrays[layer.attention()->module + "/value_channel_amax"] = channels.value_amax;
  if (layer.moe()) {
    stats.arrays[layer.moe()->module + "/up_input_channel_amax"] = copied(channels.experts.up);
    stats.arrays[layer.moe()->module + "/down_input_channel_amax"] = copied(channels.experts.down);
  }
  checkpoint::write_stats(path, stats);
}

LayerChannels read_channels(const std::string& path, const std::string& run, const layers::LayerSpec& layer) {
  const StatsReader reader(path);
  check_run(reader, run);
  LayerChannels channels;
  for (const layers::SmoothingGroup& group : layers::smoothing_groups(layer)) {
    const std::string name = group_name(layer, group);
    recipes::InputStatistics& input = channels.groups[group.input_group];
    input.amax = read_tensor(reader, name + "/input_channel_amax", {channels_of(layer, group)});
    input.mean_abs = read_tensor(reader, name + "/input_channel_mean_abs", {channels_of(layer, group)});
  }
  if (const auto* attention = layer.attention()) {
    channels.value_amax.resize(static_cast<size_t>(attention->kv_heads * attention->v_head_dim));
    reader.floats(attention->module + "/value_channel_amax", channels.value_amax);
  }
  if (const auto* moe = layer.moe()) {
    const auto experts = static_cast<int64_t>(moe->experts.size());
    const int64_t hidden = layer.linears[static_cast<size_t>(feeding_linears(*moe, 0).front())].in;
    channels.experts.up = read_tensor(reader, moe->module + "/up_input_channel_amax", {experts, hidden});
    channels.experts.down = read_tensor(reader, moe->module + "/down_input_channel_amax", {experts, moe->intermediate});
  }
  return channels;
}

void put_group(StatsWriter& writer, const std::string& name, const recipes::InputStatistics& input) {
  put_input(writer, name + "/", input);
}

void read_group(const StatsReader& reader, const std::string& name, int64_t channels, DType operand, const recipes::InputNeeds& needs,
                recipes::InputStatistics& input) {
  read_input(reader, name + "/", channels, operand, needs, input);
}

void write_expert(const std::string& path, const std::string& run, const ExpertInputs& inputs, int expert) {
  StatsWriter writer(path);
  writer.put_attribute("run", run);
  for (const bool down : {false, true}) {
    const recipes::InputStatistics input = inputs.read(expert, down, {true, true, true});
    const std::string name = down ? "down_" : "up_";
    writer.put(name + "input_channel_mean_abs", numbers(input.mean_abs));
    put_input(writer, name, input);
    if (!down) writer.put("sample_weights", numbers(input.sample_weights));
  }
  writer.finish();
}

void read_expert(const StatsReader& reader, bool down, int64_t channels, int64_t tokens, DType operand, const recipes::InputNeeds& needs,
                 recipes::InputStatistics& input) {
  const std::string name = down ? "down_" : "up_";
  if (needs.channels) input.mean_abs = read_tensor(reader, name + "input_channel_mean_abs", {channels});
  read_input(reader, name, channels, operand, needs, input);
  if (!needs.sample) return;
  const int64_t count = input.sample.dim(0);
  input.sample_weights = read_tensor(reader, "sample_weights", {count});
  input.sample_worth = static_cast<double>(tokens) / static_cast<double>(count);
}

void check_run(const StatsReader& reader, const std::string& run) {
  const auto attributes = reader.attributes();
  const auto found = attributes.find("run");
  if (found == attributes.end() || found->second != run)
    throw data_error("these statistics are not of the run that calibration.h5 is of", reader.path(),
                     "copy calibration.h5 and the folder calibration beside it together");
}

int64_t gram_file_bytes(const layers::ModelSpec& model) {
  int64_t bytes = 0;
  for (const auto& layer : model.layers) {
    for (const layers::SmoothingGroup& group : layers::smoothing_groups(layer)) bytes += gram_bytes(channels_of(layer, group));
    if (const auto* moe = layer.moe()) {
      const int64_t hidden = layer.linears[static_cast<size_t>(feeding_linears(*moe, 0).front())].in;
      bytes += static_cast<int64_t>(moe->experts.size()) * (gram_bytes(hidden) + gram_bytes(moe->intermediate));
    }
  }
  return bytes;
}

}  // namespace ptq::runner
