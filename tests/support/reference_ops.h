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
std::vector<double> attention_in_f64(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& starts,
                                     const kernels::AttentionShape& shape);

}  // namespace ptq::test
