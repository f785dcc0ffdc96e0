#pragma once
// What attention and its gradient share: the checks of their inputs, which keys a query sees, and products of rows with panels of queries.

#include <algorithm>
#include <vector>

#include "kernels/cpu/panel_kernels.h"
#include "kernels/ops.h"

namespace ptq::kernels::cpu {

/// Throws a bug for inputs that are not as causal_attention says. `out` has the shape of its output.
inline void check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                            const AttentionShape& shape, const Tensor& out) {
  const int64_t tokens = q.dim(0);
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "attention: kv heads do not divide the heads");
  require(q.dim(1) == shape.heads * shape.head_dim && k.dim(1) == shape.kv_heads * shape.head_dim, "attention: q or k has a wrong width");
  require(v.dim(1) == shape.kv_heads * shape.v_head_dim && out.dim(1) == shape.heads * shape.v_head_dim,
          "attention: v or out has a wrong width");
  require(k.dim(0) == tokens && v.dim(0) == tokens && out.dim(0) == tokens, "attention: token counts differ");
  require(!starts.empty() && starts.front() == 0 && starts.back() == tokens, "attention: starts do not cover the tokens");
  require(!sinks.defined() || sinks.numel() == shape.heads, "attention: not one sink per head");
  require(shape.window == 0 || shape.chunk == 0, "attention: both a window and chunks");
}

/// The first key that a query may see, both counted from the start of their sequence. Never less than an earlier query's.
inline int64_t oldest_key(const AttentionShape& shape, int64_t query) {
  if (shape.window != 0) return std::max<int64_t>(0, query - shape.window + 1);
  return shape.chunk != 0 ? query / shape.chunk * shape.chunk : 0;
}

/// out[panel][row][P] = x · panel for every panel: x[rows][depth], rows `stride` floats apart; panels [count][depth][P]; the rows of a
/// panel in `out` begin `out_stride` floats after those of the one before. x_panel: scratch for a tile of x.
inline void multiply_rows(const PanelKernels& kernels, const float* x, int64_t stride, int64_t rows, int64_t depth, const float* panels,
                          int64_t count, float* x_panel, float* out, int64_t out_stride) {
  for (int64_t row = 0; row < rows; row += kernels.tokens) {
    const int tile_rows = static_cast<int>(std::min<int64_t>(kernels.tokens, rows - row));
    for (int64_t d = 0; d < depth; d += kPanelDepth) {
      const int64_t steps = std::min(kPanelDepth, depth - d);
      kernels.copy_f32(x + row * stride + d, stride, tile_rows, steps, x_panel);
      for (int64_t p = 0; p < count; ++p)
        kernels.tile(tile_rows, x_panel, panels + (p * depth + d) * kernels.width, steps, out + p * out_stride + row * kernels.width,
                     kernels.width, d == 0);
    }
  }
}

}  // namespace ptq::kernels::cpu
