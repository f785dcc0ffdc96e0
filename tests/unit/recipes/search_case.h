#pragma once
// Inputs and weights that a search can gain something on: channels of very unequal size that depend on each other.

#include <cmath>
#include <vector>

#include "kernels/search_ops.h"
#include "recipes/smoothing.h"
#include "tests/support/reference_ops.h"
#include "tests/support/reference_search.h"

namespace ptq::test {

/// Tokens [tokens, channels] f32: every 9th channel 20 times the others, each mixed with the one before.
inline Tensor uneven_tokens(int64_t tokens, int64_t channels, uint64_t seed = 3) {
  Tensor x = random_tensor({tokens, channels}, DType::kF32, seed);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < channels; ++c) {
      float& value = x.data<float>()[t * channels + c];
      if (c % 9 == 4) value *= 20;
      if (c > 0) value += 0.6f * x.data<float>()[t * channels + c - 1];
    }
  return x;
}

inline std::vector<recipes::GramBlock> gram_of(const Tensor& x) {
  const int64_t channels = x.dim(1);
  recipes::GramBlock block{{0, channels}, Tensor::empty({channels, channels}, DType::kF32)};
  const std::vector<double> gram = gram_in_f64(x);
  for (size_t i = 0; i < gram.size(); ++i) block.values.data<float>()[i] = static_cast<float>(gram[i]);
  return {block};
}

inline recipes::InputStatistics statistics_of(const Tensor& x) {
  recipes::InputStatistics input;
  const int64_t tokens = x.dim(0), channels = x.dim(1);
  input.amax = Tensor::zeros({channels}, DType::kF32);
  kernels::column_amax(x, input.amax);
  input.mean_abs = Tensor::zeros({channels}, DType::kF32);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < channels; ++c)
      input.mean_abs.data<float>()[c] += std::fabs(x.data<float>()[t * channels + c]) / static_cast<float>(tokens);
  input.gram = gram_of(x);
  input.sample = x;
  return input;
}

/// tr(d·G·dᵀ), d = w - q.
inline double loss_of(const Tensor& w, const Tensor& q, const Tensor& gram) {
  const std::vector<float> values = values_of(q);
  double sum = 0;
  for (const double loss : row_losses(w, {values.begin(), values.end()}, gram)) sum += loss;
  return sum;
}

}  // namespace ptq::test
