#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 32768;
constexpr int64_t kRowsPerTask = 8;

}  // namespace

void silu_mul_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, Tensor& dgate, Tensor& dup) {
  require(up.shape() == gate.shape() && dy.shape() == gate.shape() && dgate.shape() == gate.shape() && dup.shape() == gate.shape(),
          "silu_mul_backward: shapes differ");
  const float *const g = gate.data<float>(), *const u = up.data<float>(), *const by_output = dy.data<float>();
  float *const by_gate = dgate.data<float>(), *const by_up = dup.data<float>();
  parallel_ranges(gate.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().silu_mul_backward(g + begin, u + begin, by_output + begin, 1, end - begin, by_gate + begin, by_up + begin);
  });
}

void gated_activation_backward(const Tensor& gate_up, const GatedShape& shape, const Tensor& dy, Tensor& d) {
  require(gate_up.rank() == 2 && dy.rank() == 2 && gate_up.dim(0) == dy.dim(0) && gate_up.dim(1) == 2 * dy.dim(1),
          "gated_activation_backward: gate_up is not [T, 2·I] or dy not [T, I]");
  require(d.shape() == gate_up.shape(), "gated_activation_backward: d is not [T, 2·I]");
  const int64_t width = dy.dim(1), stride = shape.interleaved ? 2 : 1, up = shape.interleaved ? 1 : width;
  const float *const from = gate_up.data<float>(), *const by_output = dy.data<float>();
  float* const to = d.data<float>();
  parallel_ranges(dy.dim(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* const row = from + t * 2 * width;
      float* const gradients = to + t * 2 * width;
      if (shape.clamped)
        row_kernels().clamped_gate_backward(row, row + up, by_output + t * width, stride, width, shape.alpha, shape.limit, gradients,
                                            gradients + up);
      else
        row_kernels().silu_mul_backward(row, row + up, by_output + t * width, stride, width, gradients, gradients + up);
    }
  });
}

void relu_squared_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  require(dy.shape() == x.shape() && dx.shape() == x.shape(), "relu_squared_backward: shapes differ");
  const float *const from = x.data<float>(), *const by_output = dy.data<float>();
  float* const to = dx.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().relu_squared_backward(from + begin, by_output + begin, end - begin, to + begin);
  });
}

void add_query_heads(const Tensor& x, int64_t groups, int64_t width, Tensor& out) {
  require(x.rank() == 2 && groups > 0 && width > 0 && x.dim(1) % (groups * width) == 0, "add_query_heads: x is not [T, N·W]");
  require(out.shape() == Shape{x.dim(0), groups * width}, "add_query_heads: out is not [T, G·W]");
  const int64_t heads = x.dim(1) / (groups * width);
  const float* const from = x.data<float>();
  float* const sums = out.data<float>();
  parallel_ranges(x.dim(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin * groups; group < end * groups; ++group) {
      const float* const first = from + group * heads * width;
      std::copy_n(first, width, sums + group * width);
      for (int64_t head = 1; head < heads; ++head) row_kernels().add(sums + group * width, first + head * width, width);
    }
  });
}

}  // namespace ptq::kernels::cpu
