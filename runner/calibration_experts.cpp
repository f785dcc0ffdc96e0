// The part of a calibration run that sees routed experts, chunk after chunk.

#include <algorithm>

#include "runner/calibration.h"

namespace ptq::runner {

void Calibration::experts_loaded(const ExpertChunk& chunk) {
  std::vector<float>& amax = weight_amax_.at(chunk.layer->index);
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e)
    for (size_t i = 0; i < chunk.specs_of(e).size(); ++i) {
      const auto& spec = chunk.specs_of(e)[i];
      const Tensor& tensor = chunk.of(e)[i];
      const std::string file = source_.reader->folder() + "/" + source_.reader->at(spec.name).file;
      const float found = checked_amax(tensor.reshaped({tensor.dim(0), tensor.numel() / tensor.dim(0)}), spec.name, file);
      float& kept = amax[static_cast<size_t>(spec.linear)];
      if (spec.is_weight()) kept = std::max(kept, found);
    }
}

layers::ForcedVisits Calibration::forced(const layers::LayerSpec&, const std::vector<int64_t>& counts) {
  std::vector<int> starved;
  for (size_t e = 0; e < counts.size(); ++e)
    if (counts[e] < recipe_.moe.min_tokens_per_expert) starved.push_back(static_cast<int>(e));
  return layers::force_visits(std::move(starved), recipe_.moe.min_tokens_per_expert, tokens_);
}

bool Calibration::needs_layer_first(const layers::LayerSpec& layer) const {
  if (smoothing(layer).experts) return true;
  return std::any_of(layer.linears.begin(), layer.linears.end(), [&](const auto& linear) {
    const recipes::Format format = plan_.decisions.at(linear.module).encoding.format;
    return linear.is_stacked() && (format == recipes::Format::kFp8 || recipes::info(format).shares_weight_scale);
  });
}

void Calibration::experts_done(const ExpertChunk& chunk) {
  const layers::LayerSpec& layer = *chunk.layer;
  if (smoothing(layer).experts) return write_searched_experts(chunk);
  for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e) {
    const auto& specs = chunk.specs_of(e);
    // The scale group of an expert is whole on its owner; that of stacked experts was merged over the stage.
    std::map<int, float> group_amax;
    for (size_t i = 0; i < specs.size(); ++i) {
      if (!specs[i].is_weight()) continue;
      const auto& linear = layer.linears[static_cast<size_t>(specs[i].linear)];
      const auto merged = merged_amax_.find(layer.index);
      const float amax = linear.is_stacked() && merged != merged_amax_.end()
                             ? merged->second[static_cast<size_t>(specs[i].linear)]
                             : weight_amax_.at(layer.index)[static_cast<size_t>(specs[i].linear)];
      group_amax[linear.scale_group] = std::max(group_amax[linear.scale_group], amax);
    }
    for (size_t i = 0; i < specs.size(); ++i) {
      const Tensor& stored = chunk.of(e)[i];
      const int64_t first_row = specs[i].expert == layers::kAllExperts ? e : 0;
      if (!specs[i].is_weight() || !encoding_of(layer, specs[i].linear).is_quantized()) {
        output_.push(specs[i].name, first_row * stored.row_bytes(), stored);
        continue;
      }
      const layers::LinearSpec& linear = layer.linears[static_cast<size_t>(specs[i].linear)];
      std::vector<recipes::ScaleNote> noted_with_the_layer;
      recipes::LinearScales scales;
      scales.weight_scale = recipes::weight_scale(encoding_of(layer, specs[i].linear), group_amax.at(linear.scale_group), linear.module,
                                                  noted_with_the_layer);
      write_rows(linear, stored, Tensor(), first_row, scales);
    }
  }
}

}  // namespace ptq::runner
