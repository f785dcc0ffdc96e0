#pragma once
// The judge of what is on disk: re-opens a finished folder and looks at every file as a server would.

#include <string>
#include <vector>

#include "checkpoint/output_layout.h"
#include "parallel/communicator.h"

namespace ptq::runner {

struct VerifyResult {
  int64_t checks = 0;                 ///< single claims looked at
  std::vector<std::string> failures;  ///< one sentence each, naming file or tensor
};

/// Checks the export in `folder`, its tensors spread over the ranks of `world`: JSON files agree, index and shards agree, headers are well
/// formed, each quantized linear has exactly its format's tensors with their dtypes and shapes, scales are finite and positive, no FP8
/// code is NaN, shared scales are equal (fused linears', and of a layer's routed experts the input scales), KV scales come in pairs,
/// exclude patterns match all unquantized matrices - routers and multi-token prediction among them - and no quantized one, every file has
/// the SHA-256 that ptq-runner/manifest.json (if there is one) keeps; with `expected` also names, dtypes, shapes and places of the plan;
/// with `source` (a checkpoint, and what model.config is to it) every tensor that is not quantized is byte-equal to the source's but for
/// smoothing factors that were folded into it, and none of the source's is missing. Collective; every rank gets the same result.
VerifyResult verify_export(const std::string& folder, const std::string& source, const std::string& source_config,
                           const checkpoint::OutputLayout* expected, parallel::Communicator& world);

}  // namespace ptq::runner
