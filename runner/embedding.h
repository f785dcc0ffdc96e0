#pragma once
// Token ids to embedding rows, reading only the rows that occur.

#include <functional>
#include <vector>

#include "checkpoint/reader.h"

namespace ptq::runner {

/// For every micro-batch m, in order of its ids: keep(m, states [ids[m].size(), H] of `dtype`). Reads each distinct row of the table
/// [V, H] once per call, in ascending order, and holds the distinct rows while it runs. Throws a data Error naming the id for NaN or Inf.
void look_up_embeddings(const checkpoint::Reader& reader, const checkpoint::TensorEntry& table,
                        const std::vector<std::vector<int32_t>>& ids, DType dtype, const std::function<void(int64_t, const Tensor&)>& keep);

}  // namespace ptq::runner
