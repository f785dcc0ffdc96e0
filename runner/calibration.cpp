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

}  // namespace

float checked_amax(const Tensor& rows, const std::string& name, const std::string& file) {
  if (!is_float(rows.dtype()) || rows.numel() == 0) return 0.0f;
  const kernels::Amax found = kernels::amax(rows);
  if (found.non_finite_row >= 0)
    throw data_error("NaN or Inf in the weights: tensor " + name, file, "the checkpoint is damaged: download or convert it again");
  return found.value;
}

Calibration::Calibration(const SourceModel& source, const recipes::Recipe& recipe, const ExportPlan& plan, const parallel::Mesh& mesh,
                         OutputStream& output)
    : source_(source), recipe_(recipe), plan_(plan), mesh_(mesh), output_(output) {}

void Calibration::loaded(const LayerTensors& tensors) {
  std::vector<float>& amax = weight_amax_[tensors.layer->index];
  amax.assign(tensors.layer->linears.size(), 0.0f);
  for (size_t i = 0; i < tensors.specs.size(); ++i) {
    const auto& spec = tensors.specs[i];
    const float found = checked_amax(tensors.shares[i], spec.name, source_.reader->folder() + "/" + source_.reader->at(spec.name).file);
    if (spec.linear >= 0 && spec.shape.size() == 2) amax[static_cast<size_t>(spec.linear)] = found;
  }
}

std::optional<Error> Calibration::error() {
  if (observer_.error()) return observer_.error();
  return output_.error();
}

void Calibration::window_done(const std::vector<LayerTensors>& layers) {
  // One vector of all maxima of the window: weights per linear, inputs per group, keys, values; -1 where nothing was seen.
  std::vector<float> merged;
  for (const auto& tensors : layers) {
    const auto& amax = weight_amax_.at(tensors.layer->index);
    merged.insert(merged.end(), amax.begin(), amax.end());
    const auto seen = observer_.maxima().find(tensors.layer->index);
    for (size_t group = 0; group < group_count(*tensors.layer); ++group) {
      float value = -1;
      if (seen != observer_.maxima().end())
        if (const auto at = seen->second.input_amax.find(static_cast<int>(group)); at != seen->second.input_amax.end()) value = at->second;
      merged.push_back(value);
    }
    merged.push_back(seen != observer_.maxima().end() ? seen->second.key_amax : -1);
    merged.push_back(seen != observer_.maxima().end() ? seen->second.value_amax : -1);
  }
  mesh_.stage().all_reduce_max(std::span<float>(merged));

  size_t at = 0;
  for (const auto& tensors : layers) {
    const layers::LayerSpec& layer = *tensors.layer;
    const size_t linears = layer.linears.size(), groups = group_count(layer);
    recipes::LayerStatistics statistics;
    statistics.weight_amax.assign(merged.begin() + static_cast<int64_t>(at), merged.begin() + static_cast<int64_t>(at + linears));
    for (size_t group = 0; group < groups; ++group)
      if (merged[at + linears + group] >= 0) statistics.input_amax[static_cast<int>(group)] = merged[at + linears + group];
    statistics.key_amax = merged[at + linears + groups];
    statistics.value_amax = merged[at + linears + groups + 1];
    at += linears + groups + 2;
    weight_amax_.erase(layer.index);

    const auto scales = recipes::minmax_scales(layer, plan_.decisions, statistics, notes_);
    for (size_t i = 0; i < tensors.specs.size(); ++i) {
      const auto& spec = tensors.specs[i];
      const Tensor& share = tensors.shares[i];
      const int64_t first_row = tensors.placements[i].share.begin;
      const bool is_weight = spec.linear >= 0 && spec.shape.size() == 2;
      if (is_weight && plan_.decisions.at(layer.linears[static_cast<size_t>(spec.linear)].module).format != recipes::Format::kNone)
        write_linear(layer.linears[static_cast<size_t>(spec.linear)], share, first_row, scales[static_cast<size_t>(spec.linear)]);
      else if (share.numel() > 0)
        output_.push(spec.name, first_row * share.row_bytes(), share);
    }
    if (mesh_.stage().rank() != 0) continue;
    if (recipe_.kv_cache != "none" && layer.attention()) {
      const std::string& module = layer.attention()->module;
      output_.push(module + ".k_proj.k_scale", 0, scalar(recipes::kv_scale(statistics.key_amax, module + ".k_proj", notes_)));
      output_.push(module + ".v_proj.v_scale", 0, scalar(recipes::kv_scale(statistics.value_amax, module + ".v_proj", notes_)));
    }
    keep_statistics(layer, statistics);
  }
}

void Calibration::write_linear(const layers::LinearSpec& linear, const Tensor& share, int64_t first_row,
                               const recipes::LinearScales& scales) {
  if (share.dim(0) == 0) return;
  const recipes::Format format = plan_.decisions.at(linear.module).format;
  const auto quotient = recipe_.fp8_quotient == "modelopt" ? kernels::Fp8Quotient::kBf16 : kernels::Fp8Quotient::kExact;
  const std::vector<Tensor> encoded = recipes::encode_rows(format, share, scales, quotient);
  size_t next = 0;
  for (const auto& part : recipes::encoded_tensors(format, linear)) {
    if (part.row_elements > 0) {
      const Tensor& rows = encoded[next++];
      output_.push(linear.module + part.suffix, first_row * rows.row_bytes(), rows);
    } else if (first_row == 0) {
      output_.push(linear.module + part.suffix, 0, scalar(recipes::scalar_value(format, part.suffix, scales)));
    }
  }
}

void Calibration::keep_statistics(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics) {
  for (size_t i = 0; i < layer.linears.size(); ++i) {
    const auto& linear = layer.linears[i];
    stats_.arrays[linear.module + "/weight_amax"] = {statistics.weight_amax[i]};
    if (const auto input = statistics.input_amax.find(linear.input_group); input != statistics.input_amax.end())
      stats_.arrays[linear.module + "/input_amax"] = {input->second};
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
