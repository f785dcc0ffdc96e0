#include "runner/calibration.h"

#include <algorithm>

#include "kernels/ops.h"

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
                         OutputStream& output, int64_t tokens)
    : source_(source), recipe_(recipe), plan_(plan), mesh_(mesh), output_(output), tokens_(tokens) {}

void Calibration::loaded(const LayerTensors& tensors) {
  std::vector<float>& amax = weight_amax_[tensors.layer->index];
  amax.assign(tensors.layer->linears.size(), 0.0f);
  for (size_t i = 0; i < tensors.specs.size(); ++i) {
    const auto& spec = tensors.specs[i];
    const float found = checked_amax(tensors.shares[i], spec.name, source_.reader->folder() + "/" + source_.reader->at(spec.name).file);
    if (spec.is_weight()) amax[static_cast<size_t>(spec.linear)] = found;
  }
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
    merged.push_back(std::move(statistics));
  }
  return merged;
}

void Calibration::window_done(const std::vector<LayerTensors>& layers) {
  const std::vector<recipes::LayerStatistics> merged = merge(layers);
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

void Calibration::write_layer(const LayerTensors& tensors, const recipes::LayerStatistics& statistics) {
  const layers::LayerSpec& layer = *tensors.layer;
  const auto scales = recipes::minmax_scales(layer, plan_.decisions, statistics, notes_);
  for (size_t i = 0; i < tensors.specs.size(); ++i) {
    const auto& spec = tensors.specs[i];
    const Tensor& share = tensors.shares[i];
    const int64_t first_row = tensors.placements[i].share.begin;
    if (spec.is_weight() && format_of(layer, spec.linear) != recipes::Format::kNone)
      write_linear(layer.linears[static_cast<size_t>(spec.linear)], share, first_row, scales[static_cast<size_t>(spec.linear)]);
    else if (share.numel() > 0)
      output_.push(spec.name, first_row * share.row_bytes(), share);
  }
  if (mesh_.stage().rank() != 0) return;
  for (size_t i = 0; i < layer.linears.size(); ++i)
    if (layer.linears[i].is_routed()) write_scalars(layer.linears[i], scales[i]);
  if (recipe_.kv_cache != "none" && layer.attention()) {
    const std::string& module = layer.attention()->module;
    output_.push(module + ".k_proj.k_scale", 0, scalar(recipes::kv_scale(statistics.key_amax, module + ".k_proj", notes_)));
    output_.push(module + ".v_proj.v_scale", 0, scalar(recipes::kv_scale(statistics.value_amax, module + ".v_proj", notes_)));
  }
  keep_statistics(layer, statistics);
}

recipes::Format Calibration::format_of(const layers::LayerSpec& layer, int linear) const {
  return plan_.decisions.at(layer.linears[static_cast<size_t>(linear)].module).format;
}

void Calibration::write_rows(const layers::LinearSpec& linear, const Tensor& share, int64_t first_row,
                             const recipes::LinearScales& scales) {
  const recipes::Format format = plan_.decisions.at(linear.module).format;
  const auto quotient = recipe_.fp8_quotient == "modelopt" ? kernels::Fp8Quotient::kBf16 : kernels::Fp8Quotient::kExact;
  const std::vector<Tensor> encoded = recipes::encode_rows(format, linear, share, scales, quotient);
  size_t next = 0;
  for (const auto& part : recipes::encoded_tensors(format, linear)) {
    if (part.is_scalar) continue;
    const Tensor& rows = encoded[next++];
    output_.push(part.tensor.name, first_row * rows.row_bytes(), rows);
  }
}

void Calibration::write_scalars(const layers::LinearSpec& linear, const recipes::LinearScales& scales) {
  const recipes::Format format = plan_.decisions.at(linear.module).format;
  if (format == recipes::Format::kNone) return;
  for (const auto& part : recipes::encoded_tensors(format, linear))
    if (part.is_scalar) output_.push(part.tensor.name, 0, scalar(recipes::scalar_value(format, part.part, scales)));
}

void Calibration::write_linear(const layers::LinearSpec& linear, const Tensor& share, int64_t first_row,
                               const recipes::LinearScales& scales) {
  if (share.dim(0) == 0) return;
  write_rows(linear, share, first_row, scales);
  if (first_row == 0) write_scalars(linear, scales);
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
}

void Calibration::quantize_head(Sweep& sweep) {
  const layers::LinearSpec& head = source_.spec.lm_head;
  const recipes::Format format = plan_.decisions.at(head.module).format;
  if (format == recipes::Format::kNone) return;
  parallel::Communicator& world = mesh_.world();
  const checkpoint::TensorEntry& entry = source_.reader->at(head.module + ".weight");
  const parallel::Range rows = world_share(head.out, mesh_);
  Tensor share = Tensor::empty({rows.size(), head.in}, entry.dtype);
  float maxima[2] = {0, -1};
  world.together([&] {
    if (rows.size() > 0) source_.reader->read_rows(entry, rows.begin, rows.end, share.raw());
    maxima[0] = checked_amax(share, entry.name, source_.reader->folder() + "/" + entry.file);
  });
  std::optional<Error> error;
  if (recipes::info(format).quantizes_activations && mesh_.pipeline_rank() == 0) {
    std::map<std::string, Tensor> vectors;
    const std::string& norm = source_.spec.final_norm.module;
    vectors[norm + ".weight"] = source_.reader->read(norm + ".weight");
    if (source_.reader->find(norm + ".bias")) vectors[norm + ".bias"] = source_.reader->read(norm + ".bias");
    const DType operand = recipe_.compute == "fp32" ? DType::kF32 : DType::kBF16;
    for (int64_t m = 0; m < sweep.micro_batches(); ++m) {
      const Tensor hidden = sweep.final_hidden(m);
      Tensor x = sweep.workspace().get("norm", hidden.shape(), operand);
      layers::apply_norm(source_.spec.final_norm, vectors, hidden, x);
      const kernels::Amax found = kernels::amax(x);
      maxima[1] = std::max(maxima[1], found.value);
      if (found.non_finite_row >= 0 && !error)
        error = data_error(
            "NaN or Inf in the activations: input of lm_head, sample " + std::to_string(sweep.batch(m).row_of(found.non_finite_row)),
            "lm_head");
    }
  }
  world.agree(error);
  world.all_reduce_max(std::span<float>(maxima));

  layers::LayerSpec layer;  // lm_head as a layer of its own: one linear, one group
  layer.linears.push_back(head);
  recipes::LayerStatistics statistics;
  statistics.weight_amax = {maxima[0]};
  if (maxima[1] >= 0) statistics.input_amax[head.input_group] = maxima[1];
  const auto scales = recipes::minmax_scales(layer, plan_.decisions, statistics, notes_);
  write_linear(head, share, rows.begin, scales[0]);
  if (world.rank() == 0) keep_statistics(layer, statistics);
}

}  // namespace ptq::runner
