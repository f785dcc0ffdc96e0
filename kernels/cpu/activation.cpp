#include <algorithm>
#include <cstring>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 32768;
int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, width)); }

bool writes_bf16(const Tensor& x, const Tensor& out) {
  require(out.shape() == x.shape(), "element-wise op: shapes differ");
  require(out.dtype() == DType::kBF16 || out.dtype() == DType::kF32, "element-wise op: out is neither bf16 nor f32");
  return out.dtype() == DType::kBF16;
}

}  // namespace

const RowKernels& row_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return kRowsAvx512;
    case Isa::kAvx2:
      return kRowsAvx2;
#endif
    default:
      return kRowsBaseline;
  }
}

const float* widened(const Tensor& tensor, Scratch& scratch) {
  if (tensor.dtype() == DType::kF32) return tensor.data<float>();
  float* const values = scratch.floats(tensor.numel());
  row_kernels().widen(tensor.raw(), source_of(tensor.dtype()), tensor.numel(), values);
  return values;
}

void silu_mul(const Tensor& gate, const Tensor& up, Tensor& out) {
  const bool to_bf16 = writes_bf16(gate, out);
  require(up.shape() == gate.shape(), "silu_mul: gate and up differ");
  const float *g = gate.data<float>(), *u = up.data<float>();
  const int64_t out_bytes = dtype_bytes(out.dtype());
  parallel_ranges(gate.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().silu_mul(g + begin, u + begin, 1, end - begin, out.raw() + begin * out_bytes, to_bf16);
  });
}

void gated_activation(const Tensor& gate_up, const GatedShape& shape, Tensor& out) {
  require(gate_up.rank() == 2 && out.rank() == 2 && gate_up.dim(0) == out.dim(0) && gate_up.dim(1) == 2 * out.dim(1),
          "gated_activation: gate_up is not [T, 2·I] or out not [T, I]");
  require(out.dtype() == DType::kBF16 || out.dtype() == DType::kF32, "gated_activation: out is neither bf16 nor f32");
  const int64_t width = out.dim(1), stride = shape.interleaved ? 2 : 1;
  const bool to_bf16 = out.dtype() == DType::kBF16;
  const float* const from = gate_up.data<float>();
  parallel_ranges(out.dim(0), rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float *const gate = from + t * 2 * width, *const up = gate + (shape.interleaved ? 1 : width);
      std::byte* const to = out.raw() + t * out.row_bytes();
      if (shape.clamped)
        row_kernels().clamped_gate(gate, up, stride, width, shape.alpha, shape.limit, to, to_bf16);
      else
        row_kernels().silu_mul(gate, up, stride, width, to, to_bf16);
    }
  });
}

void relu_squared(const Tensor& x, Tensor& out) {
  const bool to_bf16 = writes_bf16(x, out);
  const float* const from = x.data<float>();
  const int64_t out_bytes = dtype_bytes(out.dtype());
  parallel_ranges(x.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().relu_squared(from + begin, end - begin, out.raw() + begin * out_bytes, to_bf16);
  });
}

void add_in_place(Tensor& x, const Tensor& y) {
  require(x.shape() == y.shape(), "add_in_place: shapes differ");
  float* const to = x.data<float>();
  const float* const from = y.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().add(to + begin, from + begin, end - begin); });
}

void scale_rows(Tensor& x, const Tensor& factors) {
  require(x.rank() == 2 && factors.numel() == x.dim(0), "scale_rows: not one factor per row");
  const int64_t width = x.dim(1);
  float* const values = x.data<float>();
  const float* const factor = factors.data<float>();
  parallel_ranges(x.dim(0), rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) row_kernels().scale(values + t * width, Source::kF32, width, factor[t], values + t * width);
  });
}

void scale_columns(Tensor& x, const Tensor& factors) {
  require(x.rank() == 2 && factors.numel() == x.dim(1), "scale_columns: not one factor per column");
  const int64_t width = x.dim(1);
  float* const values = x.data<float>();
  const float* const factor = factors.data<float>();
  parallel_ranges(x.dim(0), rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t c = 0; c < width; ++c) values[t * width + c] *= factor[c];
  });
}

void subtract_in_place(Tensor& x, const Tensor& y) {
  require(x.shape() == y.shape(), "subtract_in_place: shapes differ");
  float* const to = x.data<float>();
  const float* const from = y.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().add_scaled(to + begin, from + begin, end - begin, -1.0f); });
}

void convert(const Tensor& in, Tensor& out) {
  const bool to_f16 = out.dtype() == DType::kF16, to_bf16 = !to_f16 && writes_bf16(in, out);
  require(!to_f16 || (in.shape() == out.shape() && in.dtype() != DType::kBF16), "convert: f16 is made of f32 of the same shape");
  const Source source = source_of(in.dtype());
  const int64_t in_bytes = dtype_bytes(in.dtype());
  parallel_ranges(in.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    const std::byte* const from = in.raw() + begin * in_bytes;
    if (in.dtype() == out.dtype()) {
      std::memcpy(out.raw() + begin * in_bytes, from, static_cast<size_t>((end - begin) * in_bytes));
    } else if (to_f16) {
      std::transform(in.data<float>() + begin, in.data<float>() + end, out.data<F16>() + begin, [](float x) { return ptq::to_f16(x); });
    } else if (!to_bf16) {
      row_kernels().widen(from, source, end - begin, out.data<float>() + begin);
    } else if (source == Source::kF32) {
      row_kernels().narrow(in.data<float>() + begin, end - begin, reinterpret_cast<uint16_t*>(out.raw()) + begin);
    } else {
      thread_local Scratch scratch;
      float* const wide = scratch.floats(kElementsPerTask);
      row_kernels().widen(from, source, end - begin, wide);
      row_kernels().narrow(wide, end - begin, reinterpret_cast<uint16_t*>(out.raw()) + begin);
    }
  });
}

}  // namespace ptq::kernels::cpu
