#pragma once
// A run's statistics on disk, in the folder ptq-runner of its output: calibration.h5 with the numbers of every linear, and beside it, layer
// by layer as the run goes on, what has a value per channel or more. A layer's files are written by one rank each and read by whoever needs
// them, so that nobody holds more than a layer's statistics.
//   calibration/layer_3.h5            magnitudes by channel: of every smoothing group, the values, every routed expert
//   calibration/layer_3.grams.h5      with keep_gram: Gram matrices and sampled tokens of every smoothing group
//   calibration/layer_3.expert_5.h5   with keep_gram: the same of a routed expert that saw tokens

#include <string>
#include <vector>

#include "checkpoint/stats_file.h"
#include "layers/model_spec.h"
#include "recipes/activation_collector.h"
#include "runner/expert_inputs.h"

namespace ptq::runner {

struct StatisticsFiles {
  std::string folder;  ///< "OUTPUT/ptq-runner"

  std::string main() const { return folder + "/calibration.h5"; }
  std::string details() const { return folder + "/calibration"; }
  std::string layer(int64_t index) const { return details() + "/layer_" + std::to_string(index) + ".h5"; }
  std::string grams(int64_t index) const { return details() + "/layer_" + std::to_string(index) + ".grams.h5"; }
  std::string expert(int64_t index, int64_t expert) const {
    return details() + "/layer_" + std::to_string(index) + ".expert_" + std::to_string(expert) + ".h5";
  }
};

/// What a layer's file says.
struct LayerChannels {
  std::map<int, recipes::InputStatistics> groups;        ///< magnitudes, by input group
  std::vector<float> value_amax;                         ///< [kv_heads·v_head_dim]; empty: no attention
  recipes::ActivationCollector::ExpertChannels experts;  ///< undefined: no routed experts
};

/// The name of a smoothing group in the files: its first linear, or the mixture of experts that alone reads it.
std::string group_name(const layers::LayerSpec& layer, const layers::SmoothingGroup& group);

/// `run` identifies the run; see RunIdentity. Throw system Errors.
void write_channels(const std::string& path, const std::string& run, const layers::LayerSpec& layer, const LayerChannels& channels);
/// Gram matrix and sample of one smoothing group.
void put_group(checkpoint::StatsWriter& writer, const std::string& name, const recipes::InputStatistics& input);
void write_expert(const std::string& path, const std::string& run, const ExpertInputs& inputs, int expert);

/// Throws a data Error for a file that is damaged, incomplete, or of another run.
LayerChannels read_channels(const std::string& path, const std::string& run, const layers::LayerSpec& layer);
/// Gram matrix and sample of a group, those that are needed. `operand`: dtype of the tokens. `channels`: of the group.
void read_group(const checkpoint::StatsReader& reader, const std::string& name, int64_t channels, DType operand,
                const recipes::InputNeeds& needs, recipes::InputStatistics& input);
/// The same of an expert, with its mean magnitudes and what its sampled tokens weigh.
void read_expert(const checkpoint::StatsReader& reader, bool down, int64_t channels, int64_t tokens, DType operand,
                 const recipes::InputNeeds& needs, recipes::InputStatistics& input);
/// Throws a data Error unless the file is of this run.
void check_run(const checkpoint::StatsReader& reader, const std::string& run);

/// Bytes of the files that keep_gram adds for a model.
int64_t gram_file_bytes(const layers::ModelSpec& model);

}  // namespace ptq::runner
