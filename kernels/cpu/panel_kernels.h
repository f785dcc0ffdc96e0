#pragma once
// The inner loops of products: small tiles of outputs whose accumulators stay in registers, one set of functions per instruction set.
// Used by the ops that are products at heart. Every output element is one chain over the depth, so its bits do not depend on the tile.

#include <cstddef>
#include <cstdint>

namespace ptq::kernels::cpu {

/// Depth (c, or pairs of c for bf16 pairs) that one packed panel covers. A panel of 32 outputs and the tokens of a tile, 46 KiB, then fit
/// the first-level cache, and 512 outputs of it half of a 1 MiB second-level cache.
constexpr int64_t kPanelDepth = 256;
/// Row stride of x_panel in 4-byte units. The pad keeps rows off each other's cache sets.
constexpr int64_t kXStride = kPanelDepth + 16;
/// No tile has more outputs or tokens than this.
constexpr int kMaxPanelWidth = 32, kMaxTileTokens = 16;

/// A masked score: finite, so that differences of two of them are numbers.
constexpr float kMaskedScore = -3.0e38f;

struct PanelKernels {
  int tokens;           ///< rows of x in a full tile
  int width;            ///< P: outputs of a panel
  int values_per_step;  ///< c's of one step along the depth: 1 for f32, 2 for bf16 pairs

  /// Rows of W to a panel: panel[step][P] from w[rows][count], row-major, rows `stride` elements apart; rows ≤ P. Missing rows and the
  /// second half of an odd last pair are 0.
  void (*pack_f32)(const float* w, int64_t stride, int rows, int64_t count, void* panel);
  void (*pack_bf16)(const uint16_t* w, int64_t stride, int rows, int64_t count, void* panel);
  /// The first `rows` ≤ tokens rows of x to x_panel[row][kXStride]. Null where the kernel takes no such x.
  void (*copy_f32)(const float* x, int64_t stride, int rows, int64_t count, void* x_panel);
  void (*copy_bf16)(const uint16_t* x, int64_t stride, int rows, int64_t count, void* x_panel);
  /// y[rows][P] (+)= x_panel · panel over `steps`, y rows y_stride apart; `first` starts the chains from 0 instead of from y.
  void (*tile)(int rows, const void* x_panel, const void* panel, int64_t steps, float* y, int64_t y_stride, bool first);

  /// f32 kernels only. y[rows][P] += xᵀ · panel: x[steps][rows], steps `x_stride` floats apart, rows ≤ tokens.
  void (*tile_of_columns)(int rows, const float* x, int64_t x_stride, const float* panel, int64_t steps, float* y, int64_t y_stride);
  /// f32 kernels only: one block of an online softmax of P queries, each in its own lane.
  ///   oldest [P]: the first key that each query may see, ascending; the last one is the query itself
  ///   scores [keys][P] in; the weights e^(score - maximum) out, 0 where query first_query+lane may not see key first_key+row
  ///   maximum, sum [P] updated; correction [P] = e^(old maximum - new one)
  void (*softmax)(float* scores, int64_t keys, int64_t first_key, int64_t first_query, const int64_t* oldest, float* maximum, float* sum,
                  float* correction);
  /// f32 kernels only: y[rows][P] *= factor[P].
  void (*scale_columns)(float* y, int64_t rows, const float* factor);
  /// f32 kernels only: sums[P] = Σ a·b over rows [rows][P] of both, one chain from the first row on.
  void (*dot_columns)(const float* a, const float* b, int64_t rows, float* sums);
  /// f32 kernels only: gradients by the scores of P queries. With p = weights/sum: gradients = p·(gradients - dots/sum).
  ///   weights [keys][P]: as softmax left them; gradients [keys][P]: those by p in, by the scores out
  ///   sum [P]; dots [P]: Σ weights·gradients over all keys of the queries
  ///   weight_rows, gradient_rows: p and the gradients once more, keys kXStride floats apart
  void (*softmax_gradient)(const float* weights, float* gradients, int64_t keys, const float* sum, const float* dots, float* weight_rows,
                           float* gradient_rows);
};

extern const PanelKernels kPanelBaseline;
#if defined(__x86_64__)
extern const PanelKernels kPanelAvx2, kPanelAvx512, kPanelAvx512Bf16;
#endif

/// The f32 kernel of isa().
const PanelKernels& panel_kernels();
/// Those of the process's matrix product, for bf16 by bf16 or for f32.
const PanelKernels& product_kernels(bool bf16_by_bf16);

}  // namespace ptq::kernels::cpu
