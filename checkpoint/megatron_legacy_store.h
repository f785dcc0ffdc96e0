#pragma once
// Megatron's older checkpoints: a folder for each rank of the model (mp_rank_TT[_PPP][_EEE], in NeMo 1 also tp_rank_TT_pp_rank_PPP), in it
// a torch.save file with that rank's part of the state dict. Offers the arrays of the whole model under the names of torch_dist with
// numbered layers, those of models from before Megatron-core too (megatron_precore.h).

#include <memory>
#include <string>

#include "checkpoint/file_set.h"
#include "checkpoint/sharded_arrays.h"

namespace ptq::checkpoint {

class MegatronLegacyStore : public ShardedArrays {
 public:
  /// Whether any file is the model of a rank.
  static bool accepts(const FileSet& files);
  /// Reads the header of every rank's file. How many ranks shared the tensors, layers and experts comes from the args in the files, where
  /// they have any, else from the folders' names. Throws a data Error for: files that are no torch.save, ranks that are missing or left
  /// over, parts that do not make up whole arrays; a user Error for versions of the format before 2 and layers spread in ways that are not
  /// known.
  static std::unique_ptr<ArrayStore> open(const FileSet& files, const std::string& path);

 private:
  explicit MegatronLegacyStore(const std::string& path) : ShardedArrays(path) {}
};

}  // namespace ptq::checkpoint
