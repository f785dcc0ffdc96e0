#pragma once
// Operations of calibrations that search: statistics of a layer's input columns, its gram matrix XᵀX, the error feedback that follows from
// it, descent on the loss that it defines, and the scales of least error. What kernels/ops.h says of its ops holds here too: they run on
// the pool, communicate nothing, and every output element is computed whole by one task in a fixed order. search_ops.cpp is the only switch
// on the device.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/tensor.h"

namespace ptq::kernels {

// ---- statistics of columns and rows -------------------------------------------------------------------------------------------------

/// amaxes[c] = max(amaxes[c], max_t |x[t, c]|). x [T, C] bf16|f16|f32; amaxes [C] f32, updated.
void column_amax(const Tensor& x, Tensor& amaxes);
/// Units of column_sums in 1.
constexpr double kColumnSumUnits = 0x1p24;
/// sums[c] += Σ_t of x[t, c], or of |x[t, c]| if `absolute`, each rounded to the nearest multiple of 2⁻²⁴, ties to even, and counted in
/// those: integers, so that any order of adding, over calls and over ranks, gives the same sums. x [T, C] bf16|f16|f32, |x| < 2³⁹.
void column_sums(const Tensor& x, bool absolute, std::span<int64_t> sums);
/// dots[r] = Σ_c a[r, c]·b[r, c] in f64, in 16 partial sums by c modulo 16 that are added by halves. a, b [R, C] f32; overwritten.
void row_dots(const Tensor& a, const Tensor& b, std::span<double> dots);

/// Bins of count_magnitudes: bin 0 counts what is below 2⁻³², then 16 bins to an octave; what is 2³² or more is in the last.
constexpr size_t kMagnitudeBins = 1025;
/// The least magnitude of a bin; of kMagnitudeBins: 2³².
double magnitude_edge(size_t bin);
/// counts[b] += the elements of x whose magnitude lies in bin b. Integers: any order of adding gives the same. x bf16|f16|f32, finite.
void count_magnitudes(const Tensor& x, std::span<int64_t> counts);

// ---- gram matrices --------------------------------------------------------------------------------------------------------------------

/// Rows and columns of a tile of a gram matrix.
constexpr int64_t kGramTile = 256;
/// Does gram_add compute tile (row, column) of `tiles` x `tiles`? Of every pair of tiles (I, J) and (J, I) exactly one is, the diagonal
/// ones all are, and every row of tiles has about as many as the others.
constexpr bool is_gram_tile_computed(int64_t row, int64_t column, int64_t tiles) {
  const int64_t distance = (column - row + tiles) % tiles;
  return 2 * distance < tiles || (2 * distance == tiles && row < column);
}
/// gram += rows [begin, end) of XᵀX, only in the tiles of is_gram_tile_computed; all other elements are left alone. An element grows by
/// one f32 addition of what matmul gives for Xᵀ (Xᵀ)ᵀ: by the process's kernel if x is bf16, else by the f32 chain over t.
///   x [T, C] bf16|f32; gram [end - begin, C] f32, updated
void gram_add(const Tensor& x, int64_t begin, int64_t end, Tensor& gram);
/// Fills the tiles that gram_add leaves alone from their mirror images. gram [C, C] f32.
void gram_complete(Tensor& gram);
/// gram[i, j] *= factors[i]·factors[j], that product rounded first: what was symmetric stays so. gram [C, C], factors [C] f32.
void scale_gram(Tensor& gram, const Tensor& factors);

// ---- error feedback -------------------------------------------------------------------------------------------------------------------

/// The linear feedback of LDLQ and GPTQ, in place: gram [C, C] f32, symmetric and positive semidefinite, becomes the strict upper triangle
/// of M in H = M·D·Mᵀ, M unit upper triangular and D diagonal; the diagonal and what lies below become 0. H is gram with
/// damping·(the mean of its diagonal) added to its diagonal. Columns of diagonal 0 take no part: their rows and columns of M are 0. A pivot
/// that rounding left not positive counts as what was added to it; if that is 0 too, its column of M is 0.
/// Source: Chee et al., QuIP: 2-Bit Quantization of Large Language Models With Guarantees, theorem 6 (equal to GPTQ).
void feedback_factor(Tensor& gram, float damping);

/// The numbers that weights are rounded to, before they are multiplied by a step.
struct FeedbackGrid {
  enum class Kind { kInt4, kInt8, kE2M1, kE4M3 };
  Kind kind = Kind::kInt4;
  int code_min = -8;  ///< the least integer: -8 or -7 for kInt4, -128 or -127 for kInt8; no meaning for the others
};

/// Adjusts every weight for the errors of the ones before it in its row: a_k = w_k + Σ_{j<k} (w_j - q_j)·M[j, k] by one chain of fused
/// multiply-adds over j ascending, with q_j = grid(a_j / step)·step. w becomes a, not q: the quantizer of that grid, given the same steps
/// as scales, gives exactly the codes behind q. (With a code_min of -7 or -127 only if it keeps to that as well.)
///   w        [O, C]  f32, overwritten
///   feedback [C, C]  f32, the M of feedback_factor; only what is above the diagonal is read
///   steps    [O, S]  f32, positive, else a bug is thrown
///   step_of  C columns of steps: column c of w has the steps [:, step_of[c]]
void error_feedback(Tensor& w, const Tensor& feedback, const Tensor& steps, const std::vector<int32_t>& step_of, const FeedbackGrid& grid);

// ---- descent on the loss --------------------------------------------------------------------------------------------------------------

/// Lowers every row's loss (w - q)·G·(w - q)ᵀ by cyclic descent on the codes, `passes` times over the columns in their order: column k gets
/// the number of the grid nearest to what suits the other columns best, q_k = grid(x_k / step)·step with x_k = w_k + r_k / G[k, k] and
/// r_k = Σ_{i≠k} (w_i - q_i)·G[i, k]: in f32 by one chain of fused multiply-adds over i from k + 1 to the last, then from 0 to k - 1.
/// Columns whose G[k, k] is not positive keep their q. The quantizer of that grid, given q and the same steps as scales, gives exactly the
/// codes behind q, unless a product of a code and a step is below the least normal f32. (A code_min of -7 or -127 as in error_feedback.)
///   w       [O, C]  f32, what q should be near
///   q       [O, C]  f32, overwritten; on entry anything, as a rule numbers of the grid times their steps
///   gram    [C, C]  f32, symmetric
///   steps   [O, S]  f32, positive, else a bug is thrown
///   step_of as in error_feedback
void descend_codes(const Tensor& w, Tensor& q, const Tensor& gram, const Tensor& steps, const std::vector<int32_t>& step_of,
                   const FeedbackGrid& grid, int passes);

/// What a step may be.
struct StepGrid {
  enum class Kind { kF32, kBF16, kE4M3Times };
  Kind kind = Kind::kF32;
  float factor = 1.0f;  ///< of kE4M3Times: a step is f32(a positive E4M3 number · factor), as NVFP4's block scales times scale_2
};

/// Lowers the same loss over the steps, with the codes as they are: `sweeps` times over the groups of `group` columns, which divides C, in
/// their order. A step s of a group with the codes c becomes s' = s + (r·c)/(c·G_gg·cᵀ), rounded to the nearest that is allowed (a
/// quotient s'/factor outside of [2⁻⁹, 448] counts as the nearer end), where r = (w - c·s)·G in the group's columns: in f32 by chains over
/// the columns from the group's first one to the last, then from 0 on; dot products in f64. A step stays where c·G_gg·cᵀ is not positive,
/// where s' is not positive and finite, and where s' would not lower the loss by those sums.
///   w      [O, C]        f32
///   q      [O, C]        f32: codes of at most 8 significant bits (of any FeedbackGrid), times their steps
///   gram   [C, C]        f32, symmetric
///   steps  [O, C/group]  f32, updated; positive and finite, else a bug is thrown
void refit_steps(const Tensor& w, const Tensor& q, const Tensor& gram, int64_t group, const StepGrid& allowed, int sweeps, Tensor& steps);

// ---- scales of least error ----------------------------------------------------------------------------------------------------------

/// The scale of every group of `group` columns of a row, which divides C (C itself: one per row), that loses least: of the candidates
/// (ratio·amax)/format_max, in the order of the ratios, the first with the least d·G·dᵀ, where d = w - grid(w/scale)·scale and G is the
/// group's block on the diagonal of gram. A group of zeros has scale 1; a ratio·amax below the least normal f32 counts as that.
///   w [O, C] f32; gram [C, C] f32, symmetric, of which those blocks are read; scales [O, C/group] f32, overwritten
void search_group_scales(const Tensor& w, const Tensor& gram, int64_t group, const FeedbackGrid& grid, float format_max,
                         const std::vector<float>& ratios, Tensor& scales);
/// The same for NVFP4's blocks of 16 columns: a candidate is s = e4m3(clamp((ratio·amax_b)/(6·scale_2), 2⁻⁹, 448)) (1.0 for a block of
/// zeros), and a value e2m1(w/(s·scale_2))·(s·scale_2). Ratios may exceed 1.
///   w [O, C] f32; gram [C, C] f32, symmetric; block_scales [O, C/16] one-byte E4M3 codes, overwritten
void search_nvfp4_scales(const Tensor& w, const Tensor& gram, float scale_2, const std::vector<float>& ratios, Tensor& block_scales);

}  // namespace ptq::kernels
