#pragma once
// AutoQuantize: the model is calibrated and written once in every candidate format, all with the same folds; a backward sweep scores what
// each format would cost each decision group, and a format of the KV cache each attention block, where the recipe leaves it open; the best
// mixes within the budget of bits are compared by their KL divergence on rows that were not scored; the winner's tensors are taken from the
// candidates.

#include <memory>
#include <string>
#include <vector>

#include "recipes/kv_choice.h"
#include "recipes/sensitivity.h"
#include "runner/calibration_run.h"
#include "runner/scoring.h"

namespace ptq::runner {

/// One format for the whole decoder, as a checkpoint of its own.
struct Candidate {
  std::string name;  ///< a preset; of none there is nothing else
  recipes::Recipe recipe;
  ExportPlan plan;
  std::string folder;
  SourceModel model;  ///< once it is written
};

/// A mix that was looked at.
struct CheckedMix {
  recipes::Mix mix;
  double kl = 0;  ///< nats a token
};

class AutoQuantize {
 public:
  /// Plans every candidate. Throws user Errors: a candidate that the engine or the dialect does not load, a budget out of reach.
  AutoQuantize(const recipes::Recipe& recipe, const SourceModel& source);
  /// Takes the scores that the recipe names instead of measuring some. Throws user Errors where they are of another model, data or recipe.
  void find_scores(const std::string& data_fingerprint, size_t rows);

  /// Of all candidates together, on disk while the run lasts.
  int64_t scratch_bytes() const;
  /// Calibrates, scores, decides. Candidates lie in folders below `work`. Collective over the world.
  void run(parallel::Communicator& world, const parallel::MeshShape& shape, const std::vector<std::vector<int32_t>>& rows,
           const std::map<std::string, std::string>& attributes, const std::string& work, int64_t host_memory, RunLog& log);

  /// The winner: its plan, and its tensors.
  const ExportPlan& plan() const { return plan_; }
  const checkpoint::Reader& tensors() const { return *tensors_; }
  /// Groups, options and their scores, after run().
  const recipes::Sensitivity& sensitivity() const { return sensitivity_; }
  /// Any mix as a model, while the candidates are on disk.
  SourceModel model_of(const recipes::Mix& mix) const;
  /// Of the candidate whose folds all share.
  CalibrationResult& calibration() { return calibration_; }
  /// What report.json says: groups, scores, choices, mixes that were compared, the Pareto front.
  checkpoint::Json report() const;
  void remove_candidates(const std::string& work) const;

 private:
  Candidate make_candidate(const std::string& preset, bool has_folds) const;
  void calibrate(Candidate& candidate, const SourceModel& source, const parallel::Mesh& mesh, const std::vector<std::vector<int32_t>>& rows,
                 std::map<std::string, std::string> attributes, const std::string& work, int64_t host_memory, RunLog& log,
                 CalibrationResult& result);
  void score(const parallel::Mesh& mesh, const std::vector<std::vector<int32_t>>& rows, const std::string& work, int64_t host_memory,
             RunLog& log);
  void decide(parallel::Communicator& world, const std::vector<std::vector<int32_t>>& held_back, const std::string& work,
              int64_t host_memory, RunLog& log);
  /// The candidate of a group in a mix.
  const Candidate& chosen(const recipes::Mix& mix, size_t group) const;
  ExportPlan plan_of(const recipes::Mix& mix) const;
  /// Nats a token, of a mix with this score and the KV cache as decided.
  double estimated_kl(double score) const { return score + kv_mix_.score; }
  /// The mix of KV cache formats with the least score, where there is a choice. Logs it.
  void decide_kv_cache(RunLog& log);
  std::unique_ptr<checkpoint::Reader> tensors_of(const recipes::Mix& mix, const ExportPlan& plan) const;

  const recipes::Recipe& recipe_;
  const SourceModel& source_;
  std::map<std::string, const layers::LinearSpec*> linears_;  ///< by module
  std::vector<Candidate> candidates_;                         ///< as recipes::candidate_presets
  size_t first_ = 0;                                          ///< the one whose folds all share
  recipes::Sensitivity sensitivity_;
  std::vector<recipes::KnapsackGroup> items_;
  int64_t budget_ = 0;
  int64_t kv_budget_ = 0;
  recipes::Mix kv_mix_;  ///< of sensitivity_.kv, empty without a choice
  SourceModel folded_;
  CalibrationResult calibration_;
  std::vector<CheckedMix> mixes_;
  size_t winner_ = 0;
  ExportPlan plan_;
  std::unique_ptr<checkpoint::Reader> tensors_;
};

}  // namespace ptq::runner
