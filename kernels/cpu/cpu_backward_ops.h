#pragma once
// The ops of kernels/backward_ops.h on tensors in host memory; shapes and rules are stated there. Called by kernels/backward_ops.cpp only.

#include "kernels/backward_ops.h"

namespace ptq::kernels::cpu {

void rms_norm_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx);
void layer_norm_1p_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx);
void head_rms_norm_backward(const Tensor& x, const Tensor& w, int64_t head_dim, float eps, Tensor& d);
void rope_backward(Tensor& d, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin);
void causal_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                               const AttentionShape& shape, const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv);
void add_query_heads(const Tensor& x, int64_t groups, int64_t width, Tensor& out);
void expand_latent_backward(const Tensor& dk, const Tensor& dv, int64_t heads, int64_t nope, Tensor& dkv, Tensor& dk_rot);
void silu_mul_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate, Tensor& dup);
void gated_activation_backward(const Tensor& gate_up, const GatedShape& shape, const Tensor& dy, Tensor& d);
void relu_squared_backward(const Tensor& x, const Tensor& dy, Tensor& dx);
void route_backward(const Tensor& logits, const RouteRule& rule, const Tensor& experts, const Tensor& weights, const Tensor& dweights,
                    Tensor& dlogits);
void row_dots(const Tensor& x, const Tensor& y, Tensor& out);
void cross_entropy_backward(Tensor& logits, const Tensor& labels, float factor);
void draw_labels(const Tensor& logits, const Tensor& chances, Tensor& labels);
void add_squared_products(const Tensor& dy, const Tensor& delta, std::span<int64_t> bins);

}  // namespace ptq::kernels::cpu
