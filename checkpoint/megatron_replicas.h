#pragma once
// Tensors that every tensor rank holds whole: norms, routers, latent down projections, biases of what is summed over ranks.

#include <string>
#include <vector>

#include "checkpoint/megatron_shards.h"

namespace ptq::checkpoint {

/// Throws a data Error, with `path`, unless all parts of an array - of equal shapes and dtypes - hold the same bytes; it names the ranks
/// that differ from the first. Only the first and the last 64 KiB of rows are read, which is all of a norm or bias: folders of different
/// runs or iterations differ there, and every rank of this program looks.
void check_replicas(const std::string& name, const std::vector<MegatronPart>& parts, const std::string& path);

}  // namespace ptq::checkpoint
