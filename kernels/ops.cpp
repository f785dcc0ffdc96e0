#include "kernels/ops.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/dispatch.h"

namespace ptq::kernels {

MatmulKernel best_matmul_kernel() { return cpu::best_matmul_kernel(); }
void set_matmul_kernel(MatmulKernel kernel) { cpu::set_matmul_kernel(kernel); }
MatmulKernel matmul_kernel() { return cpu::matmul_kernel(); }
std::string to_string(MatmulKernel kernel) { return cpu::to_string(kernel); }

void matmul(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y) { on(x.device(), cpu::matmul)(x, w, bias, y); }
void rms_norm(const Tensor& x, const Tensor& w, float eps, Tensor& out) { on(x.device(), cpu::rms_norm)(x, w, eps, out); }
void layer_norm_1p(const Tensor& x, const Tensor& w, const Tensor& bias, float eps, Tensor& out) {
  on(x.device(), cpu::layer_norm_1p)(x, w, bias, eps, out);
}
void head_rms_norm(Tensor& x, const Tensor& w, int64_t head_dim, float eps) { on(x.device(), cpu::head_rms_norm)(x, w, head_dim, eps); }
void rope(Tensor& x, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
  on(x.device(), cpu::rope)(x, shape, positions, cos, sin);
}
void causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                      const AttentionShape& shape, Tensor& out) {
  on(q.device(), cpu::causal_attention)(q, k, v, sinks, starts, shape, out);
}
void expand_latent(const Tensor& kv, const Tensor& k_rot, int64_t heads, int64_t nope, Tensor& k, Tensor& v) {
  on(kv.device(), cpu::expand_latent)(kv, k_rot, heads, nope, k, v);
}
void silu_mul(const Tensor& gate, const Tensor& up, Tensor& out) { on(gate.device(), cpu::silu_mul)(gate, up, out); }
void gated_activation(const Tensor& gate_up, const GatedShape& shape, Tensor& out) {
  on(gate_up.device(), cpu::gated_activation)(gate_up, shape, out);
}
void relu_squared(const Tensor& x, Tensor& out) { on(x.device(), cpu::relu_squared)(x, out); }
void add_in_place(Tensor& x, const Tensor& y) { on(x.device(), cpu::add_in_place)(x, y); }
void scale_rows(Tensor& x, const Tensor& factors) { on(x.device(), cpu::scale_rows)(x, factors); }
void scale_columns(Tensor& x, const Tensor& factors) { on(x.device(), cpu::scale_columns)(x, factors); }
void subtract_in_place(Tensor& x, const Tensor& y) { on(x.device(), cpu::subtract_in_place)(x, y); }
void slice_columns(const Tensor& x, int64_t begin, Tensor& out) { on(x.device(), cpu::slice_columns)(x, begin, out); }
void place_columns(const Tensor& x, int64_t begin, Tensor& out) { on(x.device(), cpu::place_columns)(x, begin, out); }
void gather_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out) {
  on(x.device(), cpu::gather_columns)(x, columns, out);
}
void scatter_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out) {
  on(x.device(), cpu::scatter_columns)(x, columns, out);
}
void transpose(const Tensor& x, Tensor& out) { on(x.device(), cpu::transpose)(x, out); }
void convert(const Tensor& in, Tensor& out) { on(in.device(), cpu::convert)(in, out); }
Tensor converted(const Tensor& x, DType dtype) {
  Tensor out = Tensor::empty(x.shape(), dtype, x.device());
  convert(x, out);
  return out;
}
void route(const Tensor& logits, const Tensor& correction, const RouteRule& rule, Tensor& experts, Tensor& weights) {
  on(logits.device(), cpu::route)(logits, correction, rule, experts, weights);
}
void gather_rows(const Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& scales, Tensor& out) {
  on(x.device(), cpu::gather_rows)(x, rows, scales, out);
}
void add_rows(Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& weights, const Tensor& y) {
  on(x.device(), cpu::add_rows)(x, rows, weights, y);
}
Amax amax(const Tensor& x) { return on(x.device(), cpu::amax)(x); }
void quantize_fp8(const Tensor& w, float scale, Fp8Quotient quotient, Tensor& codes) {
  on(w.device(), cpu::quantize_fp8)(w, scale, quotient, codes);
}
void quantize_nvfp4(const Tensor& w, float scale_2, Tensor& packed, Tensor& block_scales) {
  on(w.device(), cpu::quantize_nvfp4)(w, scale_2, packed, block_scales);
}
void nvfp4_static_scales(const Tensor& block_amaxes, float global_amax, float scale_max, Tensor& block_scales) {
  on(block_amaxes.device(), cpu::nvfp4_static_scales)(block_amaxes, global_amax, scale_max, block_scales);
}
void quantize_nvfp4_static(const Tensor& w, const Tensor& block_scales, float scale_2, Tensor& packed) {
  on(w.device(), cpu::quantize_nvfp4_static)(w, block_scales, scale_2, packed);
}
void dequantize_fp8(const Tensor& codes, float scale, Tensor& w) { on(codes.device(), cpu::dequantize_fp8)(codes, scale, w); }
void dequantize_nvfp4(const Tensor& packed, const Tensor& block_scales, float scale_2, Tensor& w) {
  on(packed.device(), cpu::dequantize_nvfp4)(packed, block_scales, scale_2, w);
}
void fake_quantize_fp8(Tensor& x, float scale) { on(x.device(), cpu::fake_quantize_fp8)(x, scale); }
void fake_quantize_nvfp4(Tensor& x, float scale_2) { on(x.device(), cpu::fake_quantize_nvfp4)(x, scale_2); }
void block_amax(const Tensor& x, const ScaleBlock& block, Tensor& amaxes) { on(x.device(), cpu::block_amax)(x, block, amaxes); }
void row_amax(const Tensor& x, Tensor& amaxes) { on(x.device(), cpu::row_amax)(x, amaxes); }
void amaxes_to_scales(Tensor& amaxes, float format_max) { on(amaxes.device(), cpu::amaxes_to_scales)(amaxes, format_max); }
void quantize_fp8_rows(const Tensor& w, const Tensor& scales, Tensor& codes) { on(w.device(), cpu::quantize_fp8_rows)(w, scales, codes); }
void quantize_fp8_blocks(const Tensor& w, const Tensor& scales, const ScaleBlock& block, Tensor& codes) {
  on(w.device(), cpu::quantize_fp8_blocks)(w, scales, block, codes);
}
void dequantize_fp8_rows(const Tensor& codes, const Tensor& scales, Tensor& w) {
  on(codes.device(), cpu::dequantize_fp8_rows)(codes, scales, w);
}
void dequantize_fp8_blocks(const Tensor& codes, const Tensor& scales, const ScaleBlock& block, Tensor& w) {
  on(codes.device(), cpu::dequantize_fp8_blocks)(codes, scales, block, w);
}
void fake_quantize_fp8_groups(Tensor& x, int64_t group) { on(x.device(), cpu::fake_quantize_fp8_groups)(x, group); }
void quantize_int8_rows(const Tensor& w, const Tensor& scales, Tensor& codes) { on(w.device(), cpu::quantize_int8_rows)(w, scales, codes); }
void dequantize_int8_rows(const Tensor& codes, const Tensor& scales, Tensor& w) {
  on(codes.device(), cpu::dequantize_int8_rows)(codes, scales, w);
}
void fake_quantize_int8(Tensor& x, float scale) { on(x.device(), cpu::fake_quantize_int8)(x, scale); }
void fake_quantize_int8_groups(Tensor& x, int64_t group) { on(x.device(), cpu::fake_quantize_int8_groups)(x, group); }
void quantize_int4_groups(const Tensor& w, const Tensor& scales, int64_t group, Tensor& codes) {
  on(w.device(), cpu::quantize_int4_groups)(w, scales, group, codes);
}
void dequantize_int4_groups(const Tensor& codes, const Tensor& scales, int64_t group, Tensor& w) {
  on(codes.device(), cpu::dequantize_int4_groups)(codes, scales, group, w);
}
void pack_int4_row_pairs(const Tensor& codes, Tensor& packed) { on(codes.device(), cpu::pack_int4_row_pairs)(codes, packed); }
void unpack_int4_row_pairs(const Tensor& packed, Tensor& codes) { on(packed.device(), cpu::unpack_int4_row_pairs)(packed, codes); }
void pack_int4_words(const Tensor& codes, Tensor& words) { on(codes.device(), cpu::pack_int4_words)(codes, words); }
void unpack_int4_words(const Tensor& words, Tensor& codes) { on(words.device(), cpu::unpack_int4_words)(words, codes); }
void quantize_mxfp8(const Tensor& w, Tensor& codes, Tensor& scales) { on(w.device(), cpu::quantize_mxfp8)(w, codes, scales); }
void quantize_mxfp4(const Tensor& w, Tensor& packed, Tensor& scales) { on(w.device(), cpu::quantize_mxfp4)(w, packed, scales); }
void dequantize_mxfp8(const Tensor& codes, const Tensor& scales, Tensor& w) { on(codes.device(), cpu::dequantize_mxfp8)(codes, scales, w); }
void dequantize_mxfp4(const Tensor& packed, const Tensor& scales, Tensor& w) {
  on(packed.device(), cpu::dequantize_mxfp4)(packed, scales, w);
}
void fake_quantize_mxfp8(Tensor& x) { on(x.device(), cpu::fake_quantize_mxfp8)(x); }
void fake_quantize_mxfp4(Tensor& x) { on(x.device(), cpu::fake_quantize_mxfp4)(x); }
void token_losses(const Tensor& logits, const Tensor& labels, std::vector<double>& losses) {
  on(logits.device(), cpu::token_losses)(logits, labels, losses);
}
void token_agreement(const Tensor& reference, const Tensor& logits, std::vector<TokenAgreement>& result) {
  on(logits.device(), cpu::token_agreement)(reference, logits, result);
}

}  // namespace ptq::kernels
