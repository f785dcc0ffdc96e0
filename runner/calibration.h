#pragma once
// The sweep of a quantization run: observes, merges statistics over the stage, decides scales and hands codes to the writer.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/stats_file.h"
#include "recipes/coverage.h"
#include "recipes/observer.h"
#include "recipes/smoothing_plan.h"
#include "runner/calibration_result.h"
#include "runner/expert_solver.h"
#include "runner/export_plan.h"
#include "runner/kept_error.h"
#include "runner/layer_solver.h"
#include "runner/output_stream.h"
#include "runner/reused_statistics.h"
#include "runner/sweep.h"

namespace ptq::runner {

/// Where a run's statistics go and, unless it makes a forward pass, come from.
struct StatisticsPlan {
  StatisticsFiles files;               ///< of this run; the folder and its details() exist
  std::string run;                     ///< the attribute of that name
  ReusedStatistics* reused = nullptr;  ///< of an earlier run
};

class Calibration : public SweepClient, private layers::LayerHooks {
 public:
  Calibration(const SourceModel& source, const recipes::Recipe& recipe, const ExportPlan& plan, const parallel::Mesh& mesh,
              OutputStream& output, const std::vector<int64_t>& row_lengths, StatisticsPlan statistics);

  int64_t row_unit(const layers::LayerSpec& layer, const layers::TensorSpec& tensor) const override;
  /// Checks the shares for NaN and Inf and keeps each linear's weight amax.
  void loaded(const LayerTensors& tensors) override;
  void experts_loaded(const ExpertChunk& chunk) override;
  layers::LayerHooks& hooks() override { return *this; }
  void experts_forwarded(const ExpertChunk& chunk, bool stays) override;
  bool keeps_expert_tokens() const override;
  bool shows_tokens_again(const layers::LayerSpec& layer) const override { return smoothing(layer).experts; }
  int64_t statistics_bytes(const layers::LayerSpec& layer) const override;
  int64_t visit_bytes() const override;
  std::optional<Error> error() override;
  /// Merges the window's statistics over the stage (collective), then encodes and writes this rank's rows.
  void window_done(const std::vector<LayerTensors>& layers) override;
  /// Encodes and writes the experts that this rank owns.
  void experts_done(const ExpertChunk& chunk) override;
  /// Stacked experts share one weight scale, the largest of all, where the format has one.
  bool needs_layer_first(const layers::LayerSpec& layer) const override;
  void routed(const layers::LayerSpec& layer, const std::vector<int64_t>& counts) override { observer_.count(layer, counts); }
  bool forces_visits() const override { return recipe_.moe.force_route; }
  bool needs_vectors(const layers::LayerSpec& layer) const override { return reused_ && !smoothing(layer).groups.empty(); }
  layers::ForcedVisits forced(const layers::LayerSpec& layer, const std::vector<int64_t>& counts) override;

  /// lm_head, when it is quantized: its input is the final norm of the hidden states that `sweep` holds. Collective over the world.
  void quantize_head(Sweep& sweep);

  /// What this rank has to tell of the layers since it was last asked; together all ranks tell each thing once.
  CalibrationResult take_result();
  /// Of this rank.
  const recipes::SearchSeconds& search_seconds() const { return seconds_; }

 private:
  // What the forward pass shows: to the observer, and to the collector where the layer is searched.
  void linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch& batch) override;
  void expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, const layers::ExpertVisits& visits) override;
  void key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch& batch) override;

  /// Is the layer's group, or are its experts, searched?
  const recipes::LayerSmoothing& smoothing(const layers::LayerSpec& layer) const;
  /// What a group of linears reads: this run's, or an earlier one's.
  recipes::InputSource& inputs();
  recipes::InputNeeds needs(const layers::LayerSpec& layer, int input_group) const;
  /// Statistics of experts are taken from their tokens: for a search, or to be kept.
  bool keeps_tokens(const layers::LayerSpec& layer) const;
  /// Did, or does, someone see activations?
  bool is_observed() const { return tokens_ > 0; }
  recipes::CollectorOptions collector_options(const std::vector<int64_t>& row_lengths) const;
  /// Searches and writes what the recipe's method searches; the amaxes in `statistics` become those of what was written. Collective over
  /// the stage.
  void search_layer(const LayerTensors& tensors, recipes::LayerStatistics& statistics);
  void write_searched_experts(const ExpertChunk& chunk);
  /// The values' statistics as they are after their rows took the factors of the attention's output.
  void fold_values(const layers::LayerSpec& layer, recipes::LayerStatistics& statistics);
  /// The first kv head that this tensor rank has.
  int64_t first_kv_head(const layers::AttentionHeads& attention) const;

  /// What this rank's stage saw of the window's layers, merged. Collective over the stage.
  std::vector<recipes::LayerStatistics> merge(const std::vector<LayerTensors>& layers);
  /// Channel statistics of keys and values: each kv head once, wherever tensor ranks hold it. Collective over the stage.
  void merge_channels(const layers::LayerSpec& layer, recipes::LayerStatistics& merged);
  /// Input amaxes become what the recipe's range rule makes of all magnitudes. Collective over the stage.
  void choose_ranges(const layers::LayerSpec& layer, recipes::LayerStatistics& statistics);
  void write_layer(const LayerTensors& tensors, recipes::LayerStatistics& statistics);
  const recipes::Encoding& encoding_of(const layers::LayerSpec& layer, int linear) const;
  /// Rows of a weight in their format, under these row scales, or min-max ones where undefined. Scalars and vectors by themselves, so that
  /// who knows them writes them.
  void push_rows(const layers::LinearSpec& linear, const std::vector<Tensor>& parts, int64_t first_row);
  void write_rows(const layers::LinearSpec& linear, const Tensor& share, const Tensor& row_scales, int64_t first_row,
                  const recipes::LinearScales& scales);
  /// `left_to_owner`: but those that only the rank that searches an expert knows.
  void write_constants(const layers::LinearSpec& linear, const recipes::LinearScales& scales, bool left_to_owner);
  static bool owner_writes(const recipes::Encoding& encoding, const layers::LinearSpec& linear, const recipes::EncodedTensor& part);
  kernels::Fp8Quotient quotient() const;

  // calibration_head.cpp
  /// The largest magnitude that lm_head reads; -1 where nothing was observed. `is_needed`: NaN and Inf are errors. Collective over the
  /// world.
  float head_input_amax(Sweep& sweep, bool is_needed);

  // calibration_statistics.cpp
  void keep_statistics(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics);
  /// The layer's files of statistics: written, or copied where they are reused. Collective over the stage.
  void keep_details(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics);
  void copy_details(const layers::LayerSpec& layer, const recipes::LayerStatistics& statistics);
  /// The routed experts' tokens as statistics, one file an expert that this rank owns.
  void keep_experts(const ExpertChunk& chunk, const ExpertInputs& inputs);
  /// Values by channel, of all heads and ranks. Collective over the stage.
  std::vector<float> merge_value_amax(const layers::LayerSpec& layer);

  const SourceModel& source_;
  const recipes::Recipe& recipe_;
  const ExportPlan& plan_;
  const parallel::Mesh& mesh_;
  OutputStream& output_;
  StatisticsPlan statistics_plan_;
  ReusedStatistics* reused_;  ///< or nullptr
  int64_t tokens_;            ///< of all ranks
  int64_t longest_row_;       ///< in tokens
  recipes::Observer observer_;
  std::map<int64_t, recipes::LayerSmoothing> smoothing_;           ///< by layer index
  std::map<int64_t, std::vector<layers::SmoothingGroup>> groups_;  ///< the layer's, whether they are smoothed or not
  recipes::SearchSeconds seconds_;
  recipes::ActivationCollector collector_;
  std::map<int64_t, ExpertSolver> expert_solvers_;
  std::map<int64_t, recipes::LayerStatistics> settled_;  ///< of layers whose experts are written after them
  std::optional<LayerSolver> solver_;                    ///< of the layer being written
  std::map<int64_t, std::vector<float>> weight_amax_;    ///< layer index -> per linear, of this rank's rows
  std::map<int64_t, std::vector<float>> merged_amax_;    ///< the same of all rows, for layers whose experts wait for it
  std::vector<recipes::LayerCoverage> coverage_;
  std::optional<Error> error_;
  checkpoint::Stats stats_;
  std::vector<recipes::ScaleNote> notes_, expert_notes_;
  std::vector<GroupChoice> choices_;
  FoldExponents folds_;
};

/// Throws a data Error naming the tensor if its rows hold NaN or Inf; else their amax. Integer tensors give 0.
float checked_amax(const Tensor& rows, const std::string& name, const std::string& file);

}  // namespace ptq::runner
