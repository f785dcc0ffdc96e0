#pragma once
// Plain loops that say what the ops of kernels/ops.h should give, and tensors to try them on. For tests only: slow and single-threaded.

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace ptq::test {

/// Roughly normal numbers of the given standard deviation, the same for the same seed. dtype f32, bf16 or f16.
Tensor random_tensor(Shape shape, DType dtype, uint64_t seed, float deviation = 1.0f);
/// A rank-1 or shaped tensor of these values, rounded to the dtype (f32 or bf16).
Tensor tensor_of(const std::vector<float>& values, Shape shape, DType dtype = DType::kF32);
/// Every element of a float tensor as f32, exactly.
std::vector<float> values_of(const Tensor& tensor);
/// The same dtype, shape and bytes.
bool same_bits(const Tensor& a, const Tensor& b);
/// max |a - b| / max |b|: the error relative to the tensor's scale.
double relative_error(const Tensor& a, const std::vector<double>& b);

/// y[t][o] by one chain of fused multiply-adds over c from 0, then the bias.
Tensor matmul_by_fma(const Tensor& x, const Tensor& w, const Tensor& bias);
/// y[t][o] in f64, without bias.
std::vector<double> matmul_in_f64(const Tensor& x, const Tensor& w);
/// Softmax attention in f64, one sequence after the other.
std::vector<double> attention_in_f64(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks,
                                     const std::vector<int64_t>& starts, const kernels::AttentionShape& shape);
/// Every head rotated in f64 by the tables' cosines and sines.
std::vector<double> rope_in_f64(const Tensor& x, const kernels::RopeShape& shape, const Tensor& positions, const Tensor& cos,
                                const Tensor& sin);
/// RMS norm of every stretch of `width` elements, w [width].
std::vector<double> rms_norm_in_f64(const Tensor& x, const Tensor& w, int64_t width, float eps);
/// LayerNorm1p of every row of x [T, H].
std::vector<double> layer_norm_1p_in_f64(const Tensor& x, const Tensor& w, const Tensor& bias, float eps);
std::vector<double> gated_activation_in_f64(const Tensor& gate_up, const kernels::GatedShape& shape);

struct Routing {
  std::vector<int32_t> experts;  ///< [T, K]
  std::vector<double> weights;   ///< [T, K]
};
/// The best expert that is left, top_k times; scores in f64. No NaN.
Routing route_in_f64(const Tensor& logits, const Tensor& correction, const kernels::RouteRule& rule);

/// The value of an E4M3 code by its definition, sign · mantissa · 2^exponent.
float e4m3_value(uint8_t code);
/// The value of an E2M1 code from the table of its data sheet.
float e2m1_value(uint8_t code);

}  // namespace ptq::test
