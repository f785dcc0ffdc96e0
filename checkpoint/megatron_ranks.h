#pragma once
// The files of a checkpoint that Megatron's ranks wrote one each, and which rank each is.

#include <string>
#include <vector>

#include "checkpoint/file_set.h"
#include "checkpoint/megatron_args.h"

namespace ptq::checkpoint {

struct MegatronRank {
  int64_t tensor = 0, pipeline = 0, expert = 0;
  int64_t expert_tensor = 0;  ///< which part of its experts' tensors it has
  FileSlice file;
};

/// How many ranks share the tensors, the layers, the experts, and the tensors of an expert.
struct MegatronRanks {
  int64_t tensor = 1, pipeline = 1, expert = 1, expert_tensor = 1;
  std::vector<MegatronRank> ranks;  ///< pipeline stages in order, in each the experts' and then the tensors' ranks
};

/// Whether a name is that of a rank's model: mp_rank_00/model_optim_rng.pt, tp_rank_00_pp_rank_000/model_weights.ckpt, ...
bool is_megatron_rank_file(const std::string& name);
/// Every rank's file. The second number of mp_rank_00_001 is a pipeline stage, or a rank of the experts where `args` say so. Throws, with
/// `path`, a data Error for ranks that are missing or left over, and where `args` say that there were others; a user Error where experts
/// were shared in a way in which Megatron does not write every part of the model.
MegatronRanks find_megatron_ranks(const FileSet& files, const MegatronArgs& args, const std::string& path);

}  // namespace ptq::checkpoint
