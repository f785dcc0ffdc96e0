#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kRowsPerTask = 8;

/// Checks x [T, H] f32, w [H] and out [T, H] bf16 | f32; true when out is bf16.
bool writes_bf16(const Tensor& x, const Tensor& w, const Tensor& out) {
  require(x.rank() == 2 && w.numel() == x.dim(1) && out.shape() == x.shape(), "norm: x [T, H], w [H] and out [T, H] do not fit");
  require(out.dtype() == DType::kBF16 || out.dtype() == DType::kF32, "norm: out is neither bf16 nor f32");
  return out.dtype() == DType::kBF16;
}

}  // namespace

const float* ones(int64_t count, Scratch& scratch) {
  float* const values = scratch.floats(count);
  std::fill_n(values, count, 1.0f);
  return values;
}

void rms_norm(const Tensor& x, const Tensor& w, float eps, Tensor& out) {
  const bool to_bf16 = writes_bf16(x, w, out);
  const int64_t hidden = x.dim(1);
  Scratch scratch;
  const float* const weight = widened(w, scratch);
  const float* const from = x.data<float>();

  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      row_kernels().rms_norm(from + t * hidden, weight, hidden, eps, out.raw() + t * out.row_bytes(), to_bf16);
  });
}

void layer_norm_1p(const Tensor& x, const Tensor& w, const Tensor& bias, float eps, Tensor& out) {
  const bool to_bf16 = writes_bf16(x, w, out);
  const int64_t hidden = x.dim(1);
  require(bias.numel() == hidden, "norm: bias is not [H]");
  Scratch weight_scratch, bias_scratch;
  const float* const weight = widened(w, weight_scratch);
  const float* const offset = widened(bias, bias_scratch);
  const float* const from = x.data<float>();

  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      row_kernels().layer_norm_1p(from + t * hidden, weight, offset, hidden, eps, out.raw() + t * out.row_bytes(), to_bf16);
  });
}

void head_rms_norm(Tensor& x, const Tensor& w, int64_t head_dim, float eps) {
  require(x.rank() == 2 && x.dim(1) % head_dim == 0, "head norm: x is not [T, N·D]");
  require(!w.defined() || w.numel() == head_dim, "head norm: w is not [D]");
  const int64_t heads = x.dim(1) / head_dim;
  Scratch scratch;
  const float* const weight = w.defined() ? widened(w, scratch) : ones(head_dim, scratch);
  float* const values = x.data<float>();

  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin * heads; head < end * heads; ++head)
      row_kernels().rms_norm(values + head * head_dim, weight, head_dim, eps, values + head * head_dim, false);
  });
}

}  // namespace ptq::kernels::cpu
