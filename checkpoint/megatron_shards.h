#pragma once
// How Megatron's ranks share the tensors of a layer, undone: which box of the whole array each rank's part is, and with what strides.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/megatron_ranks.h"
#include "checkpoint/sharded_arrays.h"
#include "checkpoint/torch_pickle.h"

namespace ptq::checkpoint {

/// A tensor of one rank's file.
struct MegatronPart {
  TorchTensor tensor;
  MegatronRank rank;  ///< in MegatronParts, `tensor` is that of an expert's tensors where it is one
};

class MegatronParts {
 public:
  /// Adds a rank's part of an array under its name in the whole model. Parts that ranks of the experts hold alike are kept once, those of
  /// the first, and so are embeddings, which the last pipeline stage repeats.
  void add(const std::string& name, MegatronPart part);
  /// The whole arrays and their shards. `experts`: of a layer, for tensors that hold all of a rank's experts. Throws a data Error, with
  /// `path`, for arrays some ranks lack or hold in other shapes, and for replicas that differ (megatron_replicas.h).
  std::vector<std::pair<ArrayEntry, std::vector<Shard>>> arrays(const MegatronRanks& ranks, int64_t experts, const std::string& path) const;

 private:
  std::map<std::string, std::vector<MegatronPart>> parts_;
};

}  // namespace ptq::checkpoint
