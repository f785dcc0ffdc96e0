#pragma once
// Products of rows that lie as lanes. Private to each file, as lane_rows.h.

#include <algorithm>

#include "kernels/cpu/panel_kernels.h"

namespace ptq::kernels::cpu {
namespace {

/// sums [count][lanes] += Σ_i m[i][count]·x[i][lanes] over `depth` columns i; rows of m lie `m_stride` floats apart.
inline void add_products(const PanelKernels& kernels, const float* m, int64_t m_stride, const float* x, int64_t depth, int64_t count,
                         float* sums) {
  for (int64_t k = 0; k < count; k += kernels.tokens)
    kernels.tile_of_columns(static_cast<int>(std::min<int64_t>(kernels.tokens, count - k)), m + k, m_stride, x, depth,
                            sums + k * kernels.width, kernels.width);
}

}  // namespace
}  // namespace ptq::kernels::cpu
