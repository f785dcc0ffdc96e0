#pragma once
// What tests of searching ops start from: gram matrices, and steps with the columns that use them.

#include <algorithm>
#include <vector>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "tests/support/reference_ops.h"

namespace ptq::test {

/// XᵀX of more tokens than channels; neighbouring channels look alike, as they do in a model.
inline Tensor gram_of(int64_t columns, uint64_t seed) {
  Tensor x = random_tensor({2 * columns + 8, columns}, DType::kF32, seed), gram = Tensor::zeros({columns, columns}, DType::kF32);
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t c = 1; c < columns; ++c) x.data<float>()[t * columns + c] += 0.7f * x.data<float>()[t * columns + c - 1];
  kernels::gram_add(x, 0, columns, gram);
  kernels::gram_complete(gram);
  return gram;
}
inline Tensor copy_of(const Tensor& tensor) {
  Tensor copy = Tensor::empty(tensor.shape(), tensor.dtype());
  std::copy_n(tensor.raw(), tensor.bytes(), copy.raw());
  return copy;
}
inline std::vector<double> in_f64(const Tensor& tensor) {
  const std::vector<float> values = values_of(tensor);
  return {values.begin(), values.end()};
}

using Kind = kernels::FeedbackGrid::Kind;
inline const kernels::FeedbackGrid kInt4{Kind::kInt4, -8}, kInt4Symmetric{Kind::kInt4, -7}, kInt8{Kind::kInt8, -128}, kE2M1{Kind::kE2M1},
    kE4M3{Kind::kE4M3};
inline float largest_of(const kernels::FeedbackGrid& grid) {
  return grid.kind == Kind::kE2M1 ? 6.0f : grid.kind == Kind::kE4M3 ? 448.0f : grid.kind == Kind::kInt8 ? 127.0f : 7.0f;
}

/// Steps near what amaxes would give, and the column of them that each column of w uses: groups of `group`, in a shuffled order.
struct Steps {
  Tensor values;
  std::vector<int32_t> of_column;
};
inline Steps steps_for(const Tensor& w, int64_t group, float format_max, bool shuffled) {
  const int64_t columns = w.dim(1), groups = (columns + group - 1) / group;
  Steps steps{Tensor::empty({w.dim(0), groups}, DType::kF32), {}};
  kernels::block_amax(w, {1, group}, steps.values);
  kernels::amaxes_to_scales(steps.values, format_max * 1.1f);  // somewhat clipped
  for (int64_t c = 0; c < columns; ++c)
    steps.of_column.push_back(static_cast<int32_t>(shuffled ? (c * 7919 + 3) % columns / group : c / group));
  return steps;
}

}  // namespace ptq::test
