#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

/// rope, or with `backward` the same by the opposite angles.
void rotate_heads(Tensor& x, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin, bool backward) {
  const int64_t half = shape.rotary_dim / 2;
  require(x.rank() == 2 && shape.head_dim > 0 && x.dim(1) % shape.head_dim == 0, "rope: x is not [T, N·D]");
  require(shape.rotary_dim % 2 == 0 && shape.offset >= 0 && shape.offset + shape.rotary_dim <= shape.head_dim,
          "rope: the rotated dims are odd or not within a head");
  require(positions.numel() == x.dim(0), "rope: one position per token");
  require(cos.rank() == 2 && cos.dim(1) == half && sin.shape() == cos.shape(), "rope: tables are not [positions, rotary_dim/2]");
  const int64_t heads = x.dim(1) / shape.head_dim;
  const auto rotate = shape.interleaved ? row_kernels().rope_interleaved : row_kernels().rope_half;
  float* const values = x.data<float>();
  const auto* position = positions.data<int32_t>();
  const float *cos_table = cos.data<float>(), *sin_table = sin.data<float>();

  parallel_ranges(x.dim(0), 8, [&](int64_t begin, int64_t end) {
    std::vector<float> opposite(static_cast<size_t>(backward ? half : 0));
    for (int64_t t = begin; t < end; ++t) {
      require(0 <= position[t] && position[t] < cos.dim(0), "rope: a position outside the tables");
      const int64_t at = position[t] * half;
      const float* sines = sin_table + at;
      if (backward) {
        std::transform(sines, sines + half, opposite.begin(), [](float sine) { return -sine; });
        sines = opposite.data();
      }
      for (int64_t head = 0; head < heads; ++head)
        rotate(values + (t * heads + head) * shape.head_dim + shape.offset, half, cos_table + at, sines);
    }
  });
}

}  // namespace

void rope(Tensor& x, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
  rotate_heads(x, shape, positions, cos, sin, false);
}

void rope_backward(Tensor& d, const RopeShape& shape, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
  rotate_heads(d, shape, positions, cos, sin, true);
}

}  // namespace ptq::kernels::cpu
