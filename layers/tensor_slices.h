#pragma once
// Which rows of a tensor a tensor rank computes with.

#include "layers/model_spec.h"
#include "parallel/shard.h"

namespace ptq::layers {

/// Rows of a linear (weight and bias alike) on tensor rank `rank` of `ranks`. Heads are whole; kv heads above their number are shared, so
/// slices of several ranks may be the same. attention is the layer's (needed for head splits).
parallel::Range tensor_slice(const LinearSpec& linear, const AttentionHeads* attention, int64_t ranks, int64_t rank);

/// The same, but empty for a rank whose slice an earlier rank has too: the slices of all ranks, one after the other, are the whole.
parallel::Range distinct_slice(const LinearSpec& linear, const AttentionHeads* attention, int64_t ranks, int64_t rank);

/// True when the tensor's slices partition its rows, so that each rank may read and own its own; false for whole and replicated ones.
bool slices_partition(Split split, const AttentionHeads* attention, int64_t ranks);

/// Throws a user Error naming the layer when `ranks` tensor ranks cannot split this model: heads not divisible, kv heads neither
/// divisible by nor a divisor of the ranks.
void check_tensor_ranks(const ModelSpec& model, int64_t ranks);

}  // namespace ptq::layers
