#pragma once
// Who reads, owns and computes with which rows of a layer's tensor on the mesh. Every row is read by exactly one rank of the stage, which
// also writes it; all-gathers give every rank the rows it computes with.

#include "layers/model_spec.h"
#include "parallel/mesh.h"
#include "parallel/shard.h"

namespace ptq::runner {

struct Placement {
  parallel::Range share;        ///< rows this rank reads from the source and writes to the output
  parallel::Range slice;        ///< rows this rank computes with
  bool over_stage = false;      ///< shares cover the tensor over the whole stage (else this slice, over the data group)
  std::vector<int64_t> shares;  ///< rows of every member of that group, in rank order
};

/// `rows` is dimension 0 of the tensor (1 for a scalar). tensor.linear (if any) says how it splits. Shares are cut at multiples of `unit`
/// rows; where slices of the tensor ranks are not, over the whole stage.
Placement place(const layers::LayerSpec& layer, const layers::TensorSpec& tensor, int64_t rows, const parallel::Mesh& mesh,
                int64_t unit = 1);

/// Rows of a tensor outside the layers (embedding, final norm, head): cut evenly over all ranks, at multiples of `unit`.
parallel::Range world_share(int64_t rows, const parallel::Mesh& mesh, int64_t unit = 1);

}  // namespace ptq::runner
