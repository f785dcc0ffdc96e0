#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

/// The first of [0, count) whose running sum of exponentials passes `wanted`; the last one where rounding left too little.
int64_t draw(const float* row, int64_t count, float max, double wanted) {
  constexpr int64_t kBlock = 256;
  int64_t at = 0;
  double sum = 0;
  for (int64_t width = kBlock; width >= 1; width /= kBlock)
    for (; at < count; at += width) {
      const double next = sum + row_kernels().sum_exp(row + at, std::min(width, count - at), max);
      if (next > wanted) break;
      sum = next;
    }
  return std::min(at, count - 1);
}

}  // namespace

void draw_labels(const Tensor& logits, const Tensor& chances, Tensor& labels) {
  require(logits.rank() == 2 && chances.numel() == logits.dim(0) && labels.numel() == logits.dim(0),
          "draw_labels: logits [T, V], chances [T] and labels [T] do not fit");
  const int64_t vocabulary = logits.dim(1);
  parallel_for(logits.dim(0), [&](int64_t t) {
    const float chance = chances.data<float>()[t];
    const float* const row = logits.data<float>() + t * vocabulary;
    const float max = row_kernels().max(row, vocabulary);
    labels.data<int32_t>()[t] =
        chance < 0
            ? -1
            : static_cast<int32_t>(draw(row, vocabulary, max, static_cast<double>(chance) * row_kernels().sum_exp(row, vocabulary, max)));
  });
}

}  // namespace ptq::kernels::cpu
