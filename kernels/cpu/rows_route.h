#pragma once
// Scores of experts from one token's logits. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_loss.h"
#include "kernels/cpu/rows_norm.h"

namespace ptq::kernels::cpu {
namespace {

/// exp_f32 counts NaN as 88. A logit that is not a number must stay one, or routing would hide it.
PTQ_INLINE float exp_or_nan(float x) { return x != x ? x : exp_f32(x); }

void sigmoid(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = 1.0f / (1.0f + exp_or_nan(-x[i]));
}

void softmax(const float* x, int64_t count, float* out) {
  const float highest = max(x, count);
  for (int64_t i = 0; i < count; ++i) out[i] = exp_or_nan(x[i] - highest);
  const float total = sum_in_lanes(out, count, 0.0f, [](const Lanes<float>& value, const Lanes<float>& sum) { return sum + value; });
  for (int64_t i = 0; i < count; ++i) out[i] /= total;
}

}  // namespace
}  // namespace ptq::kernels::cpu
