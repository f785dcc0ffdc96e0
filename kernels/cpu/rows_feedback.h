#pragma once
// The parts of error feedback and of descent on codes that follow one column after the other. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_grid.h"

namespace ptq::kernels::cpu {
namespace {

void factor_block(float* h, int64_t stride, int64_t count, double added, float* pivots, float* solve) {
  double m[kFactorBlock][kFactorBlock], inverse[kFactorBlock][kFactorBlock] = {}, column[kFactorBlock], reciprocals[kFactorBlock];
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = i; j < count; ++j) m[i][j] = static_cast<double>(h[i * stride + j]);
  for (int64_t k = count - 1; k >= 0; --k) {
    const double pivot = m[k][k] > 0 ? m[k][k] : added;
    pivots[k] = static_cast<float>(pivot);
    reciprocals[k] = pivot > 0 ? 1.0 / pivot : 0.0;
    for (int64_t i = 0; i < k; ++i) m[i][k] *= reciprocals[k];
    for (int64_t i = 0; i < k; ++i) column[i] = m[i][k];
    for (int64_t i = 0; i < k; ++i) {
      const double factor = column[i] * pivot;
      for (int64_t j = i; j < k; ++j) m[i][j] -= factor * column[j];
    }
  }
  for (int64_t i = count - 1; i >= 0; --i) {
    inverse[i][i] = 1.0;
    for (int64_t u = i + 1; u < count; ++u)
      for (int64_t j = u; j < count; ++j) inverse[i][j] -= m[i][u] * inverse[u][j];
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i + 1; j < count; ++j) h[i * stride + j] = static_cast<float>(m[i][j]);
    for (int64_t j = 0; j < count; ++j) solve[i * count + j] = static_cast<float>(inverse[i][j] * reciprocals[i]);
  }
}

void feed_back(float* adjusted, float* errors, int64_t lanes, int64_t count, const float* feedback, int64_t stride, const float* steps,
               const int32_t* step_of, const Rounding& rounding) {
  with_grid(rounding, [&](auto grid) {
    for (int64_t k = 0; k < count; ++k)
      for (int64_t lane = 0; lane < lanes; lane += kNativeFloats) {
        const NativeF32 step = load_native(steps + step_of[k] * lanes + lane);
        const NativeF32 rounded = grid(load_native(adjusted + k * lanes + lane) / step) * step;
        const NativeF32 error = load_native(errors + k * lanes + lane) - rounded;
        store_native(errors + k * lanes + lane, error);
        for (int64_t next = k + 1; next < count; ++next) {
          float* const at = adjusted + next * lanes + lane;
          store_native(at, fma(splat(feedback[k * stride + next]), error, load_native(at)));
        }
      }
  });
}

void descend(float* sums, const float* w, float* q, float* errors, int64_t lanes, int64_t count, const float* gram, int64_t stride,
             const float* steps, const int32_t* step_of, const Rounding& rounding) {
  with_grid(rounding, [&](auto grid) {
    for (int64_t k = 0; k < count; ++k) {
      const float* const of_column = gram + k * stride;
      for (int64_t lane = 0; lane < lanes; lane += kNativeFloats) {
        const int64_t at = k * lanes + lane;
        if (of_column[k] > 0) {
          const NativeF32 wanted = load_native(w + at), step = load_native(steps + step_of[k] * lanes + lane);
          const NativeF32 best = wanted + load_native(sums + at) / splat(of_column[k]), rounded = grid(best / step) * step;
          store_native(q + at, rounded);
          store_native(errors + at, wanted - rounded);
        }
        const NativeF32 error = load_native(errors + at);
        for (int64_t next = k + 1; next < count; ++next) {
          float* const sum = sums + next * lanes + lane;
          store_native(sum, fma(splat(of_column[next]), error, load_native(sum)));
        }
      }
    }
  });
}

}  // namespace
}  // namespace ptq::kernels::cpu
