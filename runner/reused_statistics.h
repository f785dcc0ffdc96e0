#pragma once
// The statistics of an earlier run in the place of a forward pass. Every rank reads for itself what it needs of its layers; nothing here
// communicates.

#include <map>
#include <memory>
#include <string>

#include "recipes/input_source.h"
#include "recipes/minmax.h"
#include "recipes/recipe.h"
#include "runner/layer_statistics.h"

namespace ptq::runner {

class ReusedStatistics : public recipes::InputSource {
 public:
  /// Opens what calibration.reuse names: a calibration.h5, the folder it lies in, or the output folder of a run. Takes over what the recipe
  /// leaves open of the calibration. Throws a user Error when there is nothing, when it is of an earlier version or of a run that saw no
  /// activations, or when it cannot serve the recipe: another model, another calibration, no Gram matrices for a method that searches, no
  /// channels of keys and values; a data Error when it is damaged.
  ReusedStatistics(recipes::Recipe& recipe, const std::string& source_fingerprint, bool searches);

  /// The calibration.h5 that was found.
  const std::string& path() const { return path_; }
  const StatisticsFiles& files() const { return files_; }
  const std::string& data_fingerprint() const { return stats_.attributes.at("data_fingerprint"); }
  const checkpoint::Stats& all() const { return stats_; }
  int64_t rows() const { return rows_; }
  int64_t tokens() const { return tokens_; }

  /// Reads the layer's magnitudes by channel, until forget(), and sees to it that nothing is missing of what was observed of it.
  /// `checks_grams`: sees to it that the Gram matrices are sound, which the other ranks rely on. Throws system and data Errors.
  void load(const layers::LayerSpec& layer, bool checks_grams);
  /// What was observed of a loaded layer, beside its weights.
  void fill(const layers::LayerSpec& layer, recipes::LayerStatistics& statistics) const;
  /// The largest magnitude that lm_head read. Throws a data Error when it is missing.
  float head_input_amax(const layers::LinearSpec& head) const;
  recipes::InputStatistics channels(const layers::LayerSpec& layer, int input_group) override;
  recipes::InputStatistics take(const layers::LayerSpec& layer, int input_group, const recipes::InputNeeds& needs) override;
  /// What the layer's experts have read. It may be used as long as this object, and magnitudes until forget().
  std::unique_ptr<ExpertInputs> experts(const layers::LayerSpec& layer);
  void forget(const layers::LayerSpec& layer) { loaded_.erase(layer.index); }

 private:
  class Experts;
  const std::vector<float>& array(const std::string& name) const;

  std::string path_;
  StatisticsFiles files_;
  checkpoint::Stats stats_;
  std::string run_;
  DType operand_ = DType::kBF16;
  int64_t rows_ = 0, tokens_ = 0;
  std::map<int64_t, LayerChannels> loaded_;
};

}  // namespace ptq::runner
