#pragma once
// Every operation of the product, declared once; ops.cpp is the only switch on the device. Activations are f32 tensors, except the
// inputs of matrix products: those are bf16 when the run computes in bf16, f32 when it computes in fp32.
// Letters: T tokens (rows of a micro-batch, several sequences one after the other), H hidden, N heads, D head dim, O x C a weight's
// output x input channels, V vocabulary. All ops run on the pool of kernels/core/thread_pool.h and communicate nothing. Every output
// element is computed whole by one task in a fixed order: results do not depend on the thread count or on how rows are split over calls.

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace ptq::kernels {

// ---- matrix product -------------------------------------------------------------------------------------------------------------

/// Which arithmetic the matrix product uses on this processor, weakest first. All f32 kernels give the same bits: each output element is
/// one chain of fused multiply-adds over c = 0, 1, 2, ... starting from 0. kAvx512Bf16 multiplies pairs of bf16 (VDPBF16PS) and differs.
enum class MatmulKernel : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

/// The kernel of the fixed table for this processor: bf16 pairs where they are faster than f32 (AMD Zen 4 and later), else the widest f32.
/// The environment variable PTQ_MATMUL_KERNEL (scalar | avx2 | avx512 | avx512_bf16) lowers it for tests.
MatmulKernel best_matmul_kernel();
/// Sets the kernel of this process: the weakest of all ranks' best ones. Throws a bug when this processor lacks it.
void set_matmul_kernel(MatmulKernel kernel);
MatmulKernel matmul_kernel();
std::string to_string(MatmulKernel kernel);

/// y = x Wᵀ (+ bias).
///   x    [T, C]  bf16 | f32
///   w    [O, C]  bf16 | f16 | f32; any O and C
///   bias [O]     bf16 | f16 | f32, or undefined; added in f32 after the product
///   y    [T, O]  f32, overwritten
/// bf16 x with bf16 w uses the process's kernel; any other pair is widened to f32 exactly and uses the f32 chain.
void matmul(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y);

// ---- norms, rope, attention, activations -------------------------------------------------------------------------------------------

/// out = w · x·rsqrt(mean(x²) + eps), f32 inside, rounded once to out's dtype (bf16 | f32). Each row's sum of squares is taken in a fixed
/// order. x [T, H] f32; w [H] bf16|f16|f32; out [T, H].
void rms_norm(const Tensor& x, const Tensor& w, float eps, Tensor& out);
/// LayerNorm1p: out = (x-μ)·rsqrt(var+eps)·(1+w) + b, biased variance (two passes), rounded once to out's dtype.
void layer_norm_1p(const Tensor& x, const Tensor& w, const Tensor& bias, float eps, Tensor& out);
/// RMS norm of every head of x [T, N·D] f32 in place, w [D] shared by the heads; w undefined: no weight.
void head_rms_norm(Tensor& x, const Tensor& w, int64_t head_dim, float eps);

struct RopeShape {
  int64_t head_dim = 0;
  int64_t offset = 0;        ///< first dim of a head that is rotated
  int64_t rotary_dim = 0;    ///< dims rotated from there on, even
  bool interleaved = false;  ///< pairs (2i, 2i+1), the result left in place; else "half": pairs (i, i + rotary_dim/2)
};
/// Rotates those dims of each head of x [T, N·D] f32 in place.
///   positions [T] i32; cos, sin [positions, rotary_dim/2] f32 tables (attention factor already in them)
void rope(Tensor& x, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin);

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0;  ///< of this rank; query head h reads kv head h / (heads / kv_heads)
  int64_t head_dim = 0;             ///< of q and k
  int64_t v_head_dim = 0;           ///< of v and the output
  float scale = 1.0f;               ///< multiplies q·k
  int64_t window = 0;               ///< a query sees the last `window` positions, itself included; 0: all before it
  int64_t chunk = 0;                ///< a query sees only positions of its own chunk [n·chunk, (n+1)·chunk); 0: all. Not with a window
};
/// Causal attention of each sequence of the micro-batch by itself, online softmax over blocks of keys in ascending order: no T×T array.
///   q [T, N·D], k [T, KV·D], v [T, KV·Dv] f32; starts: B+1 token offsets of the sequences, starts[0] = 0, starts[B] = T
///   sinks [N] bf16 | f32 or undefined: a score of each head that every query's softmax also counts, with no value
///   out [T, N·Dv] bf16 | f32, overwritten
void causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                      const AttentionShape& shape, Tensor& out);

/// Keys and values of latent attention, expanded: k's heads are [the head's first `nope` columns of kv | k_rot], v's the rest of kv.
///   kv [T, N·(nope + Dv)], k_rot [T, R] f32; k [T, N·(nope + R)], v [T, N·Dv] f32, both overwritten
void expand_latent(const Tensor& kv, const Tensor& k_rot, int64_t heads, int64_t nope, Tensor& k, Tensor& v);

/// out = silu(gate)·up, f32 inside; gate, up [T, I] f32; out [T, I] bf16 | f32.
void silu_mul(const Tensor& gate, const Tensor& up, Tensor& out);
/// Both halves of one product: gate_up [T, 2·I] f32, gate in the even columns and up in the odd ones (interleaved), or gate in the first I.
struct GatedShape {
  bool interleaved = false;
  bool clamped = false;                ///< false: silu(gate)·up
  float alpha = 1.702f, limit = 7.0f;  ///< clamped: gate = min(gate, limit), up in ±limit: (up + 1)·gate·sigmoid(alpha·gate)
};
/// out [T, I] bf16 | f32, f32 inside.
void gated_activation(const Tensor& gate_up, const GatedShape& shape, Tensor& out);
/// out = max(x, 0)², x [T, I] f32; out bf16 | f32.
void relu_squared(const Tensor& x, Tensor& out);
/// x += y, both [T, H] f32.
void add_in_place(Tensor& x, const Tensor& y);
/// Row t of x [T, H] f32 times factors[t], in place. factors [T] f32.
void scale_rows(Tensor& x, const Tensor& factors);
/// Column c of x [T, H] f32 times factors[c], in place. factors [H] f32.
void scale_columns(Tensor& x, const Tensor& factors);
/// x -= y, both [T, H] f32.
void subtract_in_place(Tensor& x, const Tensor& y);
/// out [T, W] = columns [begin, begin + W) of x [T, H]; the same dtype of any width.
void slice_columns(const Tensor& x, int64_t begin, Tensor& out);
/// And back: columns [begin, begin + W) of out [T, H] = x [T, W].
void place_columns(const Tensor& x, int64_t begin, Tensor& out);
/// out[t, i] = x[t, columns[i]], and out[t, columns[i]] = x[t, i]. x, out f32, as many rows; columns are distinct where they are written.
void gather_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out);
void scatter_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out);
/// out [C, R] = x [R, C] transposed; the same dtype of 1, 2 or 4 bytes. out is overwritten.
void transpose(const Tensor& x, Tensor& out);
/// Element-wise conversion among f32, bf16 and f16 (but not bf16 to f16); nearest, ties to even. out is overwritten, same shape.
void convert(const Tensor& in, Tensor& out);
/// A new tensor: x in that dtype.
Tensor converted(const Tensor& x, DType dtype);

// ---- mixture of experts -----------------------------------------------------------------------------------------------------------

struct RouteRule {
  enum class Kind { kSoftmax, kTopKSoftmax, kSigmoid, kGroupedSigmoid };
  Kind kind = Kind::kSoftmax;
  int64_t top_k = 1;
  bool normalize = false;              ///< kSoftmax, kGroupedSigmoid: weights divided by their sum (+1e-20 for kGroupedSigmoid)
  int64_t groups = 1, top_groups = 1;  ///< kGroupedSigmoid
  float scaling = 1.0f;                ///< kGroupedSigmoid: multiplies the weights
};
/// The top_k experts of every token and their weights, experts ascending within a token; equal scores: the lower expert. All in f32.
///   kSoftmax:        p = softmax over all E; the largest p; weights p
///   kTopKSoftmax:    the largest logits; weights softmax over those
///   kSigmoid:        the largest logits; weights sigmoid(logit)
///   kGroupedSigmoid: s = sigmoid(logit), choice = s + correction; a group's score is the sum of its two best choices (its one, where it
///                    has one); the largest choices within the top_groups best groups; weights s
/// Any logits, NaN included, give top_k distinct valid experts.
///   logits [T, E] f32; correction [E] f32 | bf16 or undefined; experts [T, K] i32, weights [T, K] f32, both overwritten
void route(const Tensor& logits, const Tensor& correction, const RouteRule& rule, Tensor& experts, Tensor& weights);

/// out[i] = x[rows[i]] (· scales[i], rounded once to out's dtype). x [T, H] bf16 | f32; out [rows.size(), H] of the same dtype,
/// overwritten; scales empty: none.
void gather_rows(const Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& scales, Tensor& out);
/// x[rows[i]] += weights[i]·y[i], a rounded product and a rounded sum, f32. x [T, H], y [rows.size(), H] f32; rows are distinct.
void add_rows(Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& weights, const Tensor& y);

// ---- observers --------------------------------------------------------------------------------------------------------------------

struct Amax {
  float value = 0.0f;           ///< max |x| over the finite elements, exact
  int64_t non_finite_row = -1;  ///< first row of dimension 0 that holds a NaN or Inf; -1: none
};
/// max |x| of a tensor of bf16 | f16 | f32 (rank 1 counts as one row).
Amax amax(const Tensor& x);

/// The block of a matrix that shares one scale. Blocks at the right and lower edge may be partial.
struct ScaleBlock {
  int64_t rows = 128, columns = 128;
};
/// max |x| of every block, exact; NaN for a block with a NaN, else Inf for one with an Inf.
///   x [R, C] bf16|f16|f32; amaxes [⌈R/rows⌉, ⌈C/columns⌉] f32, overwritten. {1, G} makes those of groups of G columns
void block_amax(const Tensor& x, const ScaleBlock& block, Tensor& amaxes);
/// The same for every row. amaxes [R] or [R, 1] f32, overwritten.
void row_amax(const Tensor& x, Tensor& amaxes);

// ---- quantizers (number formats: kernels/format) ------------------------------------------------------------------------------------

/// Precision of w / scale before it is rounded to E4M3: exact f32, or first rounded to bf16 as PyTorch does with bf16 weights.
enum class Fp8Quotient { kExact, kBf16 };
/// FP8 per tensor: code = e4m3(w / scale). w [O, C] bf16|f16|f32, scale > 0; codes [O, C] one-byte, overwritten.
void quantize_fp8(const Tensor& w, float scale, Fp8Quotient quotient, Tensor& codes);
/// NVFP4 along C in blocks of 16: block scale s = e4m3(clamp(amax_b/(6·scale_2), 2⁻⁹, 448)) (1.0 for a block of zeros),
/// code = e2m1(w / (s·scale_2)), even column in the low nibble. C % 16 == 0.
///   w [O, C] bf16|f16|f32; packed [O, C/2] u8; block_scales [O, C/16] one-byte E4M3 codes; both overwritten
void quantize_nvfp4(const Tensor& w, float scale_2, Tensor& packed, Tensor& block_scales);
/// Block scales of amaxes that a search chose: e4m3(clamp((amax_b/6)·scale_max/(global_amax/6), 2⁻⁹, 448)), in f32; a zero amax_b/6 counts
/// as 1. They go with scale_2 = global_amax/(6·scale_max); scale_max is 448, or 256 where a block's largest element may become 4, not 6.
///   block_amaxes [O, C/16] f32; block_scales [O, C/16] one-byte, overwritten
void nvfp4_static_scales(const Tensor& block_amaxes, float global_amax, float scale_max, Tensor& block_scales);
/// The codes of quantize_nvfp4 under these block scales.
void quantize_nvfp4_static(const Tensor& w, const Tensor& block_scales, float scale_2, Tensor& packed);
/// w = e4m3(code)·scale. codes [O, C] one-byte; w [O, C] f32, overwritten.
void dequantize_fp8(const Tensor& codes, float scale, Tensor& w);
/// w = e2m1(code)·e4m3(block scale)·scale_2, the product of the two scales first. Shapes as quantize_nvfp4; w [O, C] f32, overwritten.
void dequantize_nvfp4(const Tensor& packed, const Tensor& block_scales, float scale_2, Tensor& w);
/// What a server does to activations, in place on x [T, C] f32: x = e4m3(x/scale)·scale.
void fake_quantize_fp8(Tensor& x, float scale);
/// The same for NVFP4 with second-level scale `scale_2` (the checkpoint's input_scale), block scales made on the fly.
void fake_quantize_nvfp4(Tensor& x, float scale_2);

/// Scales of amaxes (f32, any shape), in place: amax/format_max, f32; 1 for amax 0, so that zeros have code 0. An amax below the least
/// normal f32 counts as that: no scale is 0. Throws a bug for an amax that is not finite.
void amaxes_to_scales(Tensor& amaxes, float format_max);

// The formats below store w / scale: an f32 quotient, rounded once, nearest, ties to even, and saturated. w [O, C] is bf16|f16|f32;
// w of a dequantizer is f32 and overwritten, code·scale rounded once. Scales are f32 and positive, else a bug is thrown.

/// FP8 per channel: codes [O, C] one-byte, overwritten; scales [O] or [O, 1].
void quantize_fp8_rows(const Tensor& w, const Tensor& scales, Tensor& codes);
void dequantize_fp8_rows(const Tensor& codes, const Tensor& scales, Tensor& w);
/// FP8 per block: codes [O, C] one-byte, overwritten; scales [⌈O/rows⌉, ⌈C/columns⌉] in row-major order, of any rank.
void quantize_fp8_blocks(const Tensor& w, const Tensor& scales, const ScaleBlock& block, Tensor& codes);
void dequantize_fp8_blocks(const Tensor& codes, const Tensor& scales, const ScaleBlock& block, Tensor& w);
/// What a server does to activations that bring no scale, in place on x [T, C] f32: every group of `group` channels of a token (C: the
/// whole token; the last one may be short) gets the scale of its own amax/448.
void fake_quantize_fp8_groups(Tensor& x, int64_t group);

/// INT8 per channel: codes [O, C] one-byte, two's complement, overwritten; scales [O] or [O, 1], amax/127.
void quantize_int8_rows(const Tensor& w, const Tensor& scales, Tensor& codes);
void dequantize_int8_rows(const Tensor& codes, const Tensor& scales, Tensor& w);
/// Activations with one static scale, in place on x f32 of any shape: x = int8(x/scale)·scale.
void fake_quantize_int8(Tensor& x, float scale);
/// Activations that bring no scale: as fake_quantize_fp8_groups with amax/127.
void fake_quantize_int8_groups(Tensor& x, int64_t group);

/// INT4 in groups of `group` inputs, which must divide C: codes [O, C] one-byte, -8 ... 7, overwritten; scales [O, C/group], amax/7.
void quantize_int4_groups(const Tensor& w, const Tensor& scales, int64_t group, Tensor& codes);
void dequantize_int4_groups(const Tensor& codes, const Tensor& scales, int64_t group, Tensor& w);
/// Two output rows to a byte, the even row in the low nibble, two's complement: codes [O, C] -> packed [O/2, C] u8, overwritten. O is even.
void pack_int4_row_pairs(const Tensor& codes, Tensor& packed);
/// And back: codes [O, C] one-byte, overwritten.
void unpack_int4_row_pairs(const Tensor& packed, Tensor& codes);
/// Eight inputs to a word, input i of them in bits 4i as code + 8: codes [O, C] -> words [O, ⌈C/8⌉] i32, overwritten; 0 beyond column C.
void pack_int4_words(const Tensor& codes, Tensor& words);
/// And back: codes [O, C] one-byte, overwritten.
void unpack_int4_words(const Tensor& words, Tensor& codes);

/// MXFP8 along C in blocks of 32: scale = the least power of two that is at least amax_b/448 (f32), as an E8M0 code, 0 for a block of
/// zeros; code = e4m3(w / scale). C % 32 == 0. A NaN makes its block's scale NaN.
///   w [O, C] bf16|f16|f32; codes [O, C] one-byte; scales [O, C/32] one-byte; both overwritten
void quantize_mxfp8(const Tensor& w, Tensor& codes, Tensor& scales);
/// MXFP4, the same with amax_b/6 and E2M1 codes, of which ties go toward zero and zeros are code 8, as the format's exporters have it.
///   packed [O, C/2] u8, even column in the low nibble; scales [O, C/32] one-byte; both overwritten
void quantize_mxfp4(const Tensor& w, Tensor& packed, Tensor& scales);
/// w = code·scale. w [O, C] f32, overwritten.
void dequantize_mxfp8(const Tensor& codes, const Tensor& scales, Tensor& w);
void dequantize_mxfp4(const Tensor& packed, const Tensor& scales, Tensor& w);
/// What a server does to activations, in place on x [T, C] f32, C % 32 == 0. MXFP4's ties go to even here: that is what processors do.
void fake_quantize_mxfp8(Tensor& x);
void fake_quantize_mxfp4(Tensor& x);

// ---- losses -------------------------------------------------------------------------------------------------------------------------

/// loss[t] = logsumexp(logits[t]) - logits[t][label[t]] in nats. logits [T, V] f32; labels [T] i32, -1: loss 0. Fixed order, f64 sums.
void token_losses(const Tensor& logits, const Tensor& labels, std::vector<double>& losses);
struct TokenAgreement {
  double kl = 0;           ///< Σ_v p_ref·(log p_ref - log p)
  bool same_top1 = false;  ///< the same argmax, lowest index at ties
};
/// Per row of reference and logits, both [T, V] f32.
void token_agreement(const Tensor& reference, const Tensor& logits, std::vector<TokenAgreement>& result);

}  // namespace ptq::kernels
