#pragma once
// The sweep of a quantization run: observes, merges statistics over the stage, decides scales and hands codes to the writer.

#include <map>
#include <string>
#include <vector>

#include "checkpoint/stats_file.h"
#include "recipes/coverage.h"
#include "recipes/observer.h"
#include "runner/export_plan.h"
#include "runner/output_stream.h"
#include "runner/sweep.h"

namespace ptq::runner {

class Calibration : public SweepClient {
 public:
  Calibration(const SourceModel& source, const recipes::Recipe& recipe, const ExportPlan& plan, const parallel::Mesh& mesh,
              OutputStream& output, int64_t tokens);

  /// Checks the shares for NaN and Inf and keeps each linear's weight amax.
  void loaded(const LayerTensors& tensors) override;
  void experts_loaded(const ExpertChunk& chunk) override;
  layers::LayerHooks& hooks() override { return observer_; }
  std::optional<Error> error() override;
  /// Merges the window's statistics over the stage (collective), then encodes and writes this rank's rows.
  void window_done(const std::vector<LayerTensors>& layers) override;
  /// Encodes and writes the experts that this rank owns.
  void experts_done(const ExpertChunk& chunk) override;
  /// Stacked experts share one weight scale, the largest of all.
  bool needs_layer_first(const layers::LayerSpec& layer) const override;
  void routed(const layers::LayerSpec& layer, const std::vector<int64_t>& counts) override { observer_.count(layer, counts); }
  bool forces_visits() const override { return recipe_.moe.force_route; }
  layers::ForcedVisits forced(const layers::LayerSpec& layer, const std::vector<int64_t>& counts) override;

  /// lm_head, when it is quantized: its input is the final norm of the hidden states that `sweep` holds. Collective over the world.
  void quantize_head(Sweep& sweep);

  /// Of the layers this rank's stage had, on stage rank 0.
  const checkpoint::Stats& statistics() const { return stats_; }
  const std::vector<recipes::ScaleNote>& notes() const { return notes_; }
  const std::vector<recipes::LayerCoverage>& coverage() const { return coverage_; }

 private:
  /// What this rank's stage saw of the window's layers, merged. Collective over the stage.
  std::vector<recipes::LayerStatistics> merge(const std::vector<LayerTensors>& layers);
  void write_layer(const LayerTensors& tensors, const recipes::LayerStatistics& statistics);
  recipes::Format format_of(const layers::LayerSpec& layer, int linear) const;
  /// Rows of a weight in their format; scalars by themselves, so that who knows them writes them.
  void write_rows(const layers::LinearSpec& linear, const Tensor& share, int64_t first_row, const recipes::LinearScales& scales);
  void write_scalars(const layers::LinearSpec& linear, const recipes::LinearScales& scales);
  void write_linear(const layers::LinearSpec& linear, const Tensor& share, int64_t first_row, const recipes::LinearScales& scales);
  void keep_statistics(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics);

  const SourceModel& source_;
  const recipes::Recipe& recipe_;
  const ExportPlan& plan_;
  const parallel::Mesh& mesh_;
  OutputStream& output_;
  int64_t tokens_;  ///< of all ranks
  recipes::Observer observer_;
  std::map<int64_t, std::vector<float>> weight_amax_;  ///< layer index -> per linear, of this rank's rows
  std::map<int64_t, std::vector<float>> merged_amax_;  ///< the same of all rows, for layers whose experts wait for it
  std::vector<recipes::LayerCoverage> coverage_;
  std::optional<Error> error_;
  checkpoint::Stats stats_;
  std::vector<recipes::ScaleNote> notes_;
};

/// Throws a data Error naming the tensor if its rows hold NaN or Inf; else their amax. Integer tensors give 0.
float checked_amax(const Tensor& rows, const std::string& name, const std::string& file);

}  // namespace ptq::runner
