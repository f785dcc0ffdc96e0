#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kRowsPerTask = 8;

using RowGradient = void (*)(const float* x, const float* w, const float* dy, int64_t count, float eps, float* dx);

/// dx of every stretch of `width` elements of x by itself.
void norm_backward(RowGradient gradient, const Tensor& x, const float* w, int64_t width, float eps, const Tensor& dy, Tensor& dx) {
  require(x.rank() == 2 && dy.shape() == x.shape() && dx.shape() == x.shape(), "norm backward: shapes of x, dy and dx differ");
  const int64_t stretches = x.dim(1) / width;
  const float *const from = x.data<float>(), *const by_output = dy.data<float>();
  float* const by_input = dx.data<float>();
  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * stretches * width; at < end * stretches * width; at += width)
      gradient(from + at, w, by_output + at, width, eps, by_input + at);
  });
}

}  // namespace

void rms_norm_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx) {
  require(x.rank() == 2 && w.numel() == x.dim(1), "norm backward: x [T, H] and w [H] do not fit");
  Scratch scratch;
  norm_backward(row_kernels().rms_norm_backward, x, widened(w, scratch), x.dim(1), eps, dy, dx);
}

void layer_norm_1p_backward(const Tensor& x, const Tensor& w, float eps, const Tensor& dy, Tensor& dx) {
  require(x.rank() == 2 && w.numel() == x.dim(1), "norm backward: x [T, H] and w [H] do not fit");
  Scratch scratch;
  norm_backward(row_kernels().layer_norm_1p_backward, x, widened(w, scratch), x.dim(1), eps, dy, dx);
}

void head_rms_norm_backward(const Tensor& x, const Tensor& w, int64_t head_dim, float eps, Tensor& d) {
  require(x.rank() == 2 && head_dim > 0 && x.dim(1) % head_dim == 0, "head norm backward: x is not [T, N·D]");
  require(!w.defined() || w.numel() == head_dim, "head norm backward: w is not [D]");
  Scratch scratch;
  const float* const weight = w.defined() ? widened(w, scratch) : ones(head_dim, scratch);
  norm_backward(row_kernels().rms_norm_backward, x, weight, head_dim, eps, d, d);
}

}  // namespace ptq::kernels::cpu
