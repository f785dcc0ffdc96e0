#pragma once
// What a Megatron checkpoint says of the run that wrote it: the Namespace `args` in its torch.save files.

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/torch_pickle.h"

namespace ptq::checkpoint {

/// 0 where the checkpoint does not say.
struct MegatronArgs {
  int64_t tensor = 0, pipeline = 0, expert = 0;  ///< ranks that share the tensors, the layers, the experts
  int64_t expert_tensor = 0;                     ///< ranks that share the tensors of an expert
  int64_t experts = 0;                           ///< of a layer
};

/// Reads the args of a file. Throws a user Error for what changes the meaning of weights in ways this program does not undo: interleaved
/// rotary positions, RMS norms whose weights are stored less 1, formats before version 2.
MegatronArgs read_megatron_args(const TorchFile& file);

}  // namespace ptq::checkpoint
