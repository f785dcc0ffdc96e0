#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

void cross_entropy_backward(Tensor& logits, const Tensor& labels, float factor) {
  require(logits.rank() == 2 && labels.numel() == logits.dim(0), "cross_entropy_backward: logits [T, V] and labels [T] do not fit");
  const int64_t vocabulary = logits.dim(1);
  float* const values = logits.data<float>();
  const auto* const label = labels.data<int32_t>();
  parallel_for(logits.dim(0), [&](int64_t t) {
    float* const row = values + t * vocabulary;
    if (label[t] < 0) {
      std::fill_n(row, vocabulary, 0.0f);
      return;
    }
    require(label[t] < vocabulary, "cross_entropy_backward: a label outside the vocabulary");
    const float max = row_kernels().max(row, vocabulary);
    const double sum = row_kernels().sum_exp(row, vocabulary, max);
    // p - 1 of a token that is nearly certain: what is left of it in f32 would be rounding alone.
    const double excess = (row_kernels().sum_exp(row + label[t], 1, max) - sum) / sum;
    row_kernels().scaled_exp(row, vocabulary, max, static_cast<float>(static_cast<double>(factor) / sum));
    row[label[t]] = static_cast<float>(static_cast<double>(factor) * excess);
  });
}

}  // namespace ptq::kernels::cpu
