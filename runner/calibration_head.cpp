// The part of a calibration run after its last layer: what lm_head reads, and lm_head itself where it is quantized.

#include <algorithm>

#include "kernels/ops.h"
#include "runner/calibration.h"

namespace ptq::runner {

float Calibration::head_input_amax(Sweep& sweep, bool is_needed) {
  float amax = -1;
  std::optional<Error> error;
  parallel::Communicator& world = mesh_.world();
  if (reused_) {
    world.together([&] { amax = reused_->head_input_amax(source_.spec.lm_head); });
    return amax;
  }
  if (is_observed() && mesh_.pipeline_rank() == 0) {
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
      amax = std::max(amax, found.value);
      if (found.non_finite_row >= 0 && !error && is_needed)
        error = data_error(
            "NaN or Inf in the activations: input of lm_head, sample " + std::to_string(sweep.batch(m).row_of(found.non_finite_row)),
            "lm_head");
    }
  }
  world.agree(error);
  world.all_reduce_max(std::span<float>(&amax, 1));
  return amax;
}

void Calibration::quantize_head(Sweep& sweep) {
  const layers::LinearSpec& head = source_.spec.lm_head;
  const recipes::Encoding& encoding = plan_.decisions.at(head.module).encoding;
  parallel::Communicator& world = mesh_.world();
  const float input_amax = head_input_amax(sweep, recipes::has_input_scale(encoding));
  if (world.rank() == 0 && input_amax >= 0) stats_.arrays[head.module + "/input_amax"] = {input_amax};
  if (!encoding.is_quantized()) return;
  const checkpoint::TensorEntry& entry = source_.reader->at(head.module + ".weight");
  const parallel::Range rows = world_share(head.out, mesh_, recipes::row_unit(encoding));
  Tensor share = Tensor::empty({rows.size(), head.in}, entry.dtype);
  float maxima[2] = {0, input_amax};
  world.together([&] {
    if (rows.size() > 0) source_.reader->read_rows(entry, rows.begin, rows.end, share.raw());
    maxima[0] = checked_amax(share, entry.name, source_.reader->folder() + "/" + entry.file);
  });
  world.all_reduce_max(std::span<float>(maxima));

  layers::LayerSpec layer;  // lm_head as a layer of its own: one linear, one group
  layer.linears.push_back(head);
  recipes::LayerStatistics statistics;
  statistics.weight_amax = {maxima[0]};
  if (maxima[1] >= 0) statistics.input_amax[head.input_group] = maxima[1];
  const auto scales = recipes::minmax_scales(layer, plan_.decisions, statistics, notes_);
  if (share.dim(0) > 0) write_rows(head, share, Tensor(), rows.begin, scales[0]);
  if (share.dim(0) > 0 && rows.begin == 0) write_constants(head, scales[0], false);
  if (world.rank() == 0) keep_statistics(layer, statistics);
}

}  // namespace ptq::runner
