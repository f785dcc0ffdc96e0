#pragma once
// Column slices of all tensor ranks put together: what replaces the sum of a row-parallel layer.

#include "kernels/core/tensor.h"
#include "layers/layer.h"
#include "parallel/communicator.h"

namespace ptq::layers {

/// Every rank of `group` has local [T, widths[rank]]; out [T, Σ widths] gets the slices side by side, whole on every rank. Same dtype.
/// Collective; returns local itself when the group has one rank. Uses two buffers of `workspace` whose names start with `name`.
Tensor gather_columns(parallel::Communicator& group, const Tensor& local, const std::vector<int64_t>& widths, const std::string& name,
                      Workspace& workspace);

}  // namespace ptq::layers
