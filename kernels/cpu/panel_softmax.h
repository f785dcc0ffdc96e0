#pragma once
// One block of an online softmax, and the gradient of one, with a query in each lane, for panel_*.cpp. Private to each file, as lanes.h.

#include "kernels/cpu/exp.h"
#include "kernels/cpu/panel_tile.h"

namespace ptq::kernels::cpu {
namespace {

PTQ_INLINE Lanes<float> exp(Lanes<float> x) {
  for (int p = 0; p < kParts; ++p) x.part[p] = exp_f32(x.part[p]);
  return x;
}

/// Marks the scores of one key that some of the queries may not see.
PTQ_INLINE void mask_key(float* scores, int64_t key, int64_t first_query, const int64_t* oldest) {
  for (int lane = 0; lane < kPanelWidth; ++lane) {
    const bool visible = oldest[lane] <= key && key <= first_query + lane;
    scores[lane] = visible ? scores[lane] : kMaskedScore;
  }
}

void softmax(float* scores, int64_t keys, int64_t first_key, int64_t first_query, const int64_t* oldest, float* maximum, float* sum,
             float* correction) {
  for (int64_t row = 0; row < keys; ++row) {
    const int64_t key = first_key + row;
    const bool all_visible = oldest[kPanelWidth - 1] <= key && key <= first_query;
    if (!all_visible) mask_key(scores + row * kPanelWidth, key, first_query, oldest);
  }
  for (int n = 0; n < kPanelLanes; ++n) {
    float* const column = scores + 16 * n;
    const Lanes<float> before = Lanes<float>::load(maximum + 16 * n);
    Lanes<float> highest = before;
    for (int64_t row = 0; row < keys; ++row) highest = max(Lanes<float>::load(column + row * kPanelWidth), highest);
    highest.store(maximum + 16 * n);
    // A query that has seen no key yet keeps the masked score as its maximum. Measured from 0 instead, its weights e^-3e38 are 0, not 1.
    Lanes<float> reference = highest;
    for (int p = 0; p < kParts; ++p) reference.part[p] = reference.part[p] > splat(0.5f * kMaskedScore) ? reference.part[p] : NativeF32{};
    const Lanes<float> factor = exp(before - reference);
    Lanes<float> total = Lanes<float>::load(sum + 16 * n) * factor;
    for (int64_t row = 0; row < keys; ++row) {
      const Lanes<float> weight = exp(Lanes<float>::load(column + row * kPanelWidth) - reference);
      weight.store(column + row * kPanelWidth);
      total = total + weight;
    }
    total.store(sum + 16 * n);
    factor.store(correction + 16 * n);
  }
}

void scale_columns(float* y, int64_t rows, const float* factor) {
  for (int n = 0; n < kPanelLanes; ++n) {
    const Lanes<float> scale = Lanes<float>::load(factor + 16 * n);
    for (int64_t row = 0; row < rows; ++row) {
      float* const at = y + row * kPanelWidth + 16 * n;
      (Lanes<float>::load(at) * scale).store(at);
    }
  }
}

void dot_columns(const float* a, const float* b, int64_t rows, float* sums) {
  for (int n = 0; n < kPanelLanes; ++n) {
    Lanes<float> total = Lanes<float>::all(0.0f);
    for (int64_t at = 16 * n; at < rows * kPanelWidth; at += kPanelWidth)
      total = fma(Lanes<float>::load(a + at), Lanes<float>::load(b + at), total);
    total.store(sums + 16 * n);
  }
}

void softmax_gradient(const float* weights, float* gradients, int64_t keys, const float* sum, const float* dots, float* weight_rows,
                      float* gradient_rows) {
  for (int n = 0; n < kPanelLanes; ++n) {
    Lanes<float> inverse = Lanes<float>::load(sum + 16 * n);
    for (int p = 0; p < kParts; ++p) inverse.part[p] = splat(1.0f) / inverse.part[p];
    const Lanes<float> mean = Lanes<float>::load(dots + 16 * n) * inverse;
    for (int64_t key = 0; key < keys; ++key) {
      float* const gradient_at = gradients + key * kPanelWidth + 16 * n;
      const Lanes<float> weight = Lanes<float>::load(weights + key * kPanelWidth + 16 * n) * inverse;
      const Lanes<float> gradient = weight * (Lanes<float>::load(gradient_at) - mean);
      weight.store(weight_rows + key * kXStride + 16 * n);
      gradient.store(gradient_at);
      gradient.store(gradient_rows + key * kXStride + 16 * n);
    }
  }
}

}  // namespace
}  // namespace ptq::kernels::cpu
