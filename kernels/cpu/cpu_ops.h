#pragma once
// The ops of kernels/ops.h on tensors in host memory; shapes and rules are stated there. Called by kernels/ops.cpp, and by tests.

#include "kernels/cpu/scratch.h"
#include "kernels/ops.h"

namespace ptq::kernels::cpu {

MatmulKernel best_matmul_kernel();
void set_matmul_kernel(MatmulKernel kernel);
MatmulKernel matmul_kernel();
std::string to_string(MatmulKernel kernel);

void matmul(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y);
void rms_norm(const Tensor& x, const Tensor& w, float eps, Tensor& out);
void layer_norm_1p(const Tensor& x, const Tensor& w, const Tensor& bias, float eps, Tensor& out);
void head_rms_norm(Tensor& x, const Tensor& w, int64_t head_dim, float eps);
void rope(Tensor& x, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin);
void causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                      const AttentionShape& shape, Tensor& out);
void expand_latent(const Tensor& kv, const Tensor& k_rot, int64_t heads, int64_t nope, Tensor& k, Tensor& v);
void silu_mul(const Tensor& gate, const Tensor& up, Tensor& out);
void gated_activation(const Tensor& gate_up, const GatedShape& shape, Tensor& out);
void relu_squared(const Tensor& x, Tensor& out);
void add_in_place(Tensor& x, const Tensor& y);
void scale_rows(Tensor& x, const Tensor& factors);
void scale_columns(Tensor& x, const Tensor& factors);
void subtract_in_place(Tensor& x, const Tensor& y);
void slice_columns(const Tensor& x, int64_t begin, Tensor& out);
void place_columns(const Tensor& x, int64_t begin, Tensor& out);
void gather_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out);
void scatter_columns(const Tensor& x, const std::vector<int32_t>& columns, Tensor& out);
void transpose(const Tensor& x, Tensor& out);
void convert(const Tensor& in, Tensor& out);
void route(const Tensor& logits, const Tensor& correction, const RouteRule& rule, Tensor& experts, Tensor& weights);
void gather_rows(const Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& scales, Tensor& out);
void add_rows(Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& weights, const Tensor& y);
Amax amax(const Tensor& x);
void quantize_fp8(const Tensor& w, float scale, Fp8Quotient quotient, Tensor& codes);
void quantize_nvfp4(const Tensor& w, float scale_2, Tensor& packed, Tensor& block_scales);
void nvfp4_static_scales(const Tensor& block_amaxes, float global_amax, float scale_max, Tensor& block_scales);
void quantize_nvfp4_static(const Tensor& w, const Tensor& block_scales, float scale_2, Tensor& packed);
void dequantize_fp8(const Tensor& codes, float scale, Tensor& w);
void dequantize_nvfp4(const Tensor& packed, const Tensor& block_scales, float scale_2, Tensor& w);
void fake_quantize_fp8(Tensor& x, float scale);
void fake_quantize_nvfp4(Tensor& x, float scale_2);
void block_amax(const Tensor& x, const ScaleBlock& block, Tensor& amaxes);
void row_amax(const Tensor& x, Tensor& amaxes);
void amaxes_to_scales(Tensor& amaxes, float format_max);
void quantize_fp8_rows(const Tensor& w, const Tensor& scales, Tensor& codes);
void quantize_fp8_blocks(const Tensor& w, const Tensor& scales, const ScaleBlock& block, Tensor& codes);
void dequantize_fp8_rows(const Tensor& codes, const Tensor& scales, Tensor& w);
void dequantize_fp8_blocks(const Tensor& codes, const Tensor& scales, const ScaleBlock& block, Tensor& w);
void fake_quantize_fp8_groups(Tensor& x, int64_t group);
void quantize_int8_rows(const Tensor& w, const Tensor& scales, Tensor& codes);
void dequantize_int8_rows(const Tensor& codes, const Tensor& scales, Tensor& w);
void fake_quantize_int8(Tensor& x, float scale);
void fake_quantize_int8_groups(Tensor& x, int64_t group);
void quantize_int4_groups(const Tensor& w, const Tensor& scales, int64_t group, Tensor& codes);
void dequantize_int4_groups(const Tensor& codes, const Tensor& scales, int64_t group, Tensor& w);
void pack_int4_row_pairs(const Tensor& codes, Tensor& packed);
void unpack_int4_row_pairs(const Tensor& packed, Tensor& codes);
void pack_int4_words(const Tensor& codes, Tensor& words);
void unpack_int4_words(const Tensor& words, Tensor& codes);
void quantize_mxfp8(const Tensor& w, Tensor& codes, Tensor& scales);
void quantize_mxfp4(const Tensor& w, Tensor& packed, Tensor& scales);
void dequantize_mxfp8(const Tensor& codes, const Tensor& scales, Tensor& w);
void dequantize_mxfp4(const Tensor& packed, const Tensor& scales, Tensor& w);
void fake_quantize_mxfp8(Tensor& x);
void fake_quantize_mxfp4(Tensor& x);
void token_losses(const Tensor& logits, const Tensor& labels, std::vector<double>& losses);
void token_agreement(const Tensor& reference, const Tensor& logits, std::vector<TokenAgreement>& result);

/// The elements of a small float tensor (a norm's weight, a bias) as f32: its own memory, or `scratch`.
const float* widened(const Tensor& tensor, Scratch& scratch);
/// The weight of a norm that has none: a factor of 1 changes no bit.
const float* ones(int64_t count, Scratch& scratch);

}  // namespace ptq::kernels::cpu
