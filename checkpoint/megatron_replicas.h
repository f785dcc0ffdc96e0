#pragma once
// Tensors that every tensor rank holds whole: norms, routers, latent down projections, biases of what is summed over ranks.

#include <string>
#include <vector>

#include "checkpoint/megatron_shards.h"

namespace ptq::checkpoint {

/// Throws a data Error, with `path`, unless all parts of an array - of equal shapes and dtypes - hold the same bytes; it names the ranks
/// that differ from the first. Reads them all in blocks of about 1 MiB, a block of two parts in memory at a time; arrays of more than 64
/// MiB are not looked at.
void check_replicas(const std::string& name, const std::vector<MegatronPart>& parts, const std::string& path);

}  // namespace ptq::checkpoint
