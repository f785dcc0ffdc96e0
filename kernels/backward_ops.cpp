#include "kernels/backward_ops.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/dispatch.h"

namespace ptq::kernels {

void rms_norm_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx) {
  on(x.device(), cpu::rms_norm_backward)(x, w, eps, dy, dx);
}
void layer_norm_1p_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx) {
  on(x.device(), cpu::layer_norm_1p_backward)(x, w, eps, dy, dx);
}
void head_rms_norm_backward(const Tensor& x, const Tensor& w, int64_t head_dim, float eps, Tensor& d) {
  on(x.device(), cpu::head_rms_norm_backward)(x, w, head_dim, eps, d);
}
void rope_backward(Tensor& d, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
  on(d.device(), cpu::rope_backward)(d, shape, positions, cos, sin);
}
void causal_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                               const AttentionShape& shape, const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv) {
  on(q.device(), cpu::causal_attention_backward)(q, k, v, sinks, starts, shape, dout, dq, dk, dv);
}
void add_query_heads(const Tensor& x, int64_t groups, int64_t width, Tensor& out) {
  on(x.device(), cpu::add_query_heads)(x, groups, width, out);
}
void expand_latent_backward(const Tensor& dk, const Tensor& dv, int64_t heads, int64_t nope, Tensor& dkv, Tensor& dk_rot) {
  on(dk.device(), cpu::expand_latent_backward)(dk, dv, heads, nope, dkv, dk_rot);
}
void silu_mul_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate, Tensor& dup) {
  on(gate.device(), cpu::silu_mul_backward)(gate, up, dy, dgate, dup);
}
void gated_activation_backward(const Tensor& gate_up, const GatedShape& shape, const Tensor& dy, Tensor& d) {
  on(gate_up.device(), cpu::gated_activation_backward)(gate_up, shape, dy, d);
}
void relu_squared_backward(const Tensor& x, const Tensor& dy, Tensor& dx) { on(x.device(), cpu::relu_squared_backward)(x, dy, dx); }
void route_backward(const Tensor& logits, const RouteRule& rule, const Tensor& experts, const Tensor& weights, const Tensor& dweights,
                    Tensor& dlogits) {
  on(logits.device(), cpu::route_backward)(logits, rule, experts, weights, dweights, dlogits);
}
void row_dots(const Tensor& x, const Tensor& y, Tensor& out) { on(x.device(), cpu::row_dots)(x, y, out); }
void cross_entropy_backward(Tensor& logits, const Tensor& labels, float factor) {
  on(logits.device(), cpu::cross_entropy_backward)(logits, labels, factor);
}
void draw_labels(const Tensor& logits, const Tensor& chances, Tensor& labels) {
  on(logits.device(), cpu::draw_labels)(logits, chances, labels);
}
void add_squared_products(const Tensor& dy, const Tensor& delta, std::span<int64_t> bins) {
  on(dy.device(), cpu::add_squared_products)(dy, delta, bins);
}
double value_of(std::span<const int64_t> bins) {
  require(bins.size() == kSumBins, "value_of: not the bins of a sum");
  double sum = 0;
  // The significand's last bit is worth 2^(e - 150); subnormals, of field 0, share the exponent of field 1.
  for (size_t e = 0; e < bins.size(); ++e) sum += std::ldexp(static_cast<double>(bins[e]), std::max(static_cast<int>(e), 1) - 150);
  return sum;
}

}  // namespace ptq::kernels
