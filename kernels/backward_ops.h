#pragma once
// Gradients of the ops of kernels/ops.h, for scores by sensitivity: only those of activations, none of weights. Letters and rules as
// there: f32, every output element is computed whole by one task in a fixed order, nothing communicates. The gradient by a linear's input
// is a matrix product itself: dX = dY·W = matmul(dY, Wᵀ). backward_ops.cpp is the only switch on the device.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace ptq::kernels {

/// Of rms_norm: with r = rsqrt(mean(x²) + eps) and g = dy·w: dx = r·(g - x·r²·mean(g·x)).
///   x [T, H] f32, what the norm read; w [H] bf16|f16|f32; dy, dx [T, H] f32; dx is overwritten and may be dy
void rms_norm_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx);
/// Of layer_norm_1p: with x̂ = (x-μ)·r and g = dy·(1 + w): dx = r·(g - mean(g) - x̂·mean(g·x̂)). Shapes as rms_norm_backward.
void layer_norm_1p_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx);
/// Of head_rms_norm, in place: d [T, N·D] f32 is the gradient by its output, then by x, what it read. w [D] or undefined.
void head_rms_norm_backward(const Tensor& x, const Tensor& w, int64_t head_dim, float eps, Tensor& d);
/// Of rope, in place: turns d [T, N·D] back. The other arguments as in rope (an attention factor in the tables multiplies again).
void rope_backward(Tensor& d, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin);

/// Of causal_attention, from its inputs: softmax is computed again, for 64 queries at a time: a thread's scratch is about 128 + D + Dv
/// floats for each token of a sequence, no T×T array. For each sequence, with P = softmax:
/// dP = dout·vᵀ, dS = P∘(dP - rowsum(dP∘P)), dq = scale·dS·k, dk = scale·dSᵀ·q, dv = Pᵀ·dout; sinks take part in the softmax alone.
/// Sums over keys and over queries run in ascending order of positions.
///   q [T, N·D], k [T, KV·D], v [T, KV·Dv], dout [T, N·Dv] f32
///   dq [T, N·D] f32; dk [T, N·D], dv [T, N·Dv] f32: by query head, to be added up by add_query_heads; all overwritten
void causal_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                               const AttentionShape& shape, const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv);
/// out [T, G·W] = for each of G groups the sum of its heads' columns in ascending order of heads. x [T, N·W] f32, N a multiple of `groups`.
void add_query_heads(const Tensor& x, int64_t groups, int64_t width, Tensor& out);
/// Of expand_latent: dkv [T, N·(nope + Dv)] from the heads' parts; dk_rot [T, N·R]: by head, to be added up by add_query_heads. dk
/// [T, N·(nope + R)], dv [T, N·Dv] f32; both results overwritten.
void expand_latent_backward(const Tensor& dk, const Tensor& dv, int64_t heads, int64_t nope, Tensor& dkv, Tensor& dk_rot);

/// Of silu_mul: with s = sigmoid(gate): dgate = dy·up·s·(1 + gate·(1-s)), dup = dy·gate·s. All [T, I] f32; results overwritten.
void silu_mul_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate, Tensor& dup);
/// Of gated_activation: d [T, 2·I] f32, overwritten, in gate_up's columns. Where a value was clamped its gradient is 0.
void gated_activation_backward(const Tensor& gate_up, const GatedShape& shape, const Tensor& dy, Tensor& d);
/// Of relu_squared: dx = dy·2·max(x, 0). [T, I] f32; dx overwritten.
void relu_squared_backward(const Tensor& x, const Tensor& dy, Tensor& dx);

/// Of route: dlogits [T, E] f32, overwritten, from the gradient by the weights of the chosen experts; which experts are chosen is constant.
///   logits [T, E] f32; experts [T, K] i32 and weights [T, K] f32 as route gave them; dweights [T, K] f32
void route_backward(const Tensor& logits, const RouteRule& rule, const Tensor& experts, const Tensor& weights, const Tensor& dweights,
                    Tensor& dlogits);

/// out[t] = Σ x[t, i]·y[t, i], in f64 over ascending i, rounded once: the gradient by a factor on a row. x [T, H] bf16 | f32, y [T, H] f32;
/// out [T, 1] f32, overwritten.
void row_dots(const Tensor& x, const Tensor& y, Tensor& out);

/// Of the cross-entropy, in place: logits [T, V] f32 become factor·(softmax(logits) - onehot(label)); rows of label -1 become 0. The sum of
/// exponentials runs in f64 in a fixed order. labels [T] i32.
void cross_entropy_backward(Tensor& logits, const Tensor& labels, float factor);

/// labels[t] = the token v at which the running sum of softmax(logits[t]), in f64 from v = 0 on, first passes chances[t]; -1 where
/// chances[t] < 0. logits [T, V] f32; chances [T] f32 below 1; labels [T] i32, overwritten.
void draw_labels(const Tensor& logits, const Tensor& chances, Tensor& labels);

// ---- sums that do not depend on their order --------------------------------------------------------------------------------------

/// Bins of a sum of positive f32: bins[e] is the sum of the significands, as integers of 24 bits, of the terms with exponent field e. Any
/// order of adding, over calls, threads and ranks, gives the same; up to 2³⁹ terms fit.
constexpr size_t kSumBins = 256;
/// bins += (dy·delta)² of every element: an f32 product, squared in f32; beyond 1e20 it counts as that, NaN as 1e20.
/// dy, delta [T, O] f32.
void add_squared_products(const Tensor& dy, const Tensor& delta, std::span<int64_t> bins);
/// The sum, in f64.
double value_of(std::span<const int64_t> bins);

}  // namespace ptq::kernels
