#pragma once
// Gradients by central differences, to try the ops of kernels/backward_ops.h against. For tests only.

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "tests/support/reference_ops.h"

namespace ptq::test {

/// The relative L2 error of `gradient`, which should be that of Σ dout·op() by `input`, over at most about `samples` elements spread over
/// it. `op` reads `input`, f32, and computes in f64; the elements of `input` are moved one by one and put back. A gradient
/// of norm below 1e-6 counts as one of 1e-6: there the differences are rounding alone.
inline double gradient_error(const Tensor& gradient, const Tensor& input, const Tensor& dout,
                             const std::function<std::vector<double>()>& op, int64_t samples = 100) {
  const std::vector<float> factors = values_of(dout);
  const auto loss = [&] {
    const std::vector<double> out = op();
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += static_cast<double>(factors[i]) * out[i];
    return sum;
  };
  // An odd stride shares no factor with widths that are powers of two: the samples lie in many columns.
  const int64_t stride = input.numel() <= samples ? 1 : input.numel() / samples | 1;
  double error = 0, scale = 0;
  for (int64_t i = 0; i < input.numel(); i += stride) {
    float& x = input.data<float>()[i];
    const float before = x, above = before + 1e-3f, below = before - 1e-3f;
    x = above;
    const double loss_above = loss();
    x = below;
    const double loss_below = loss();
    x = before;
    const double expected = (loss_above - loss_below) / (static_cast<double>(above) - static_cast<double>(below));
    error += std::pow(static_cast<double>(gradient.data<float>()[i]) - expected, 2);
    scale += expected * expected;
  }
  return std::sqrt(error / std::max(scale, 1e-12));
}

}  // namespace ptq::test
