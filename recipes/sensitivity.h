#pragma once
// What AutoQuantize measured, kept: how much every candidate of every decision group would cost and hurt. An HDF5 file as calibration.h5
// is, protected by its digest; one process writes or reads it.

#include <string>
#include <vector>

#include "recipes/decision_groups.h"

namespace ptq::recipes {

/// What scores belong to. Two measurements can stand for each other where all of it agrees.
struct SensitivityIdentity {
  std::string model_fingerprint;   ///< of the source
  std::string data_fingerprint;    ///< of the calibration rows
  std::string candidates;          ///< "nvfp4_awq, fp8, none", and what else of the recipe decides how they are found
  std::string cost;                ///< weights | active_moe
  std::string expert_granularity;  ///< layer | expert
  int64_t rows = 0;                ///< scored
};

/// What was decided from scores: the option of every group, for whoever reads the file; a run that uses the scores decides anew.
struct Choices {
  std::vector<int> options, kv_options;
};

/// The KV cache's part, where quantization.autoquantize.kv_cache leaves a choice: see recipes/kv_choice.h.
struct KvSensitivity {
  std::vector<std::string> formats;  ///< the candidates
  std::vector<DecisionGroup> groups;
  std::vector<std::vector<double>> scores;  ///< [groups][options]
};

struct Sensitivity {
  SensitivityIdentity identity;
  std::vector<std::string> presets;  ///< of the candidates
  std::vector<DecisionGroup> groups;
  std::vector<std::vector<double>> scores;  ///< [groups][options], as the groups' options; lower is better, not negative
  KvSensitivity kv;                         ///< empty without a choice
};

/// Writes the file at once; nothing appears at the path before it is whole. The same scores make the same bytes. Throws a system Error.
///   attributes  kind, version, the identity, presets and groups (JSON: [{name, modules}])
///   groups/layer, groups/weights, groups/factor  int64 [groups]
///   options/group, options/candidate, options/bits  int64, options/score f64  [all options, by group]
/// With a choice of the KV cache: attributes kv_formats and kv_groups, kv/groups/..., kv/options/... alike.
/// With choices: groups/choice and kv/groups/choice, int64 [groups], an index among the group's options.
void write_scores(const std::string& path, const Sensitivity& sensitivity, const Choices& choices = {});
/// Throws a user Error when there is no such file, a data Error for one that is damaged, holds no scores or contradicts itself.
Sensitivity read_scores(const std::string& path);

/// Throws a user Error that names what differs unless the scores at `path` belong to `expected`. `where`: the key or flag that named them.
void check_identity(const SensitivityIdentity& found, const SensitivityIdentity& expected, const std::string& path,
                    const std::string& where);

}  // namespace ptq::recipes
