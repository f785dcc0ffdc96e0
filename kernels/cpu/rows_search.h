#pragma once
// What rounding loses under many scales, a row of the weight in each lane. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_grid.h"

namespace ptq::kernels::cpu {
namespace {

void rounding_errors(const float* w, const float* scales, int64_t lanes, int64_t count, const Rounding& rounding, float* errors) {
  with_grid(rounding, [&](auto grid) {
    for (int64_t lane = 0; lane < lanes; lane += kNativeFloats) {
      const NativeF32 scale = load_native(scales + lane);
      for (int64_t i = lane; i < count * lanes; i += lanes) {
        const NativeF32 value = load_native(w + i);
        store_native(errors + i, value - grid(value / scale) * scale);
      }
    }
  });
}

void add_dots(const float* a, const float* b, int64_t lanes, int64_t count, double* sums) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t lane = 0; lane < lanes; ++lane)
      sums[lane] += static_cast<double>(a[i * lanes + lane]) * static_cast<double>(b[i * lanes + lane]);
}

void search_nvfp4(const float* w, const float* gram, float scale_2, const float* ratios, int64_t ratio_count, float* scales) {
  const FloatGrid e2m1 = e2m1_grid(), e4m3 = e4m3_grid();
  const NativeF32 zero{}, divisor = splat(6.0f * scale_2), least = splat(0x1p-9f), most = splat(448.0f);
  for (int lane = 0; lane < 16; lane += kNativeFloats) {
    NativeF32 amax{};
    for (int i = 0; i < 16; ++i) {
      const NativeF32 value = load_native(w + 16 * i + lane), magnitude = value < zero ? -value : value;
      amax = magnitude > amax ? magnitude : amax;
    }
    NativeF32 best_scale{}, best_loss{};
    for (int64_t r = 0; r < ratio_count; ++r) {
      const NativeF32 wanted = splat(ratios[r]) * amax / divisor, raised = wanted > least ? wanted : least;
      const NativeF32 candidate = e4m3(raised < most ? raised : most), block_scale = amax == zero ? splat(1.0f) : candidate;
      const NativeF32 scale = block_scale * splat(scale_2);
      NativeF32 errors[16], loss{};
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const NativeF32 value = load_native(w + 16 * i + lane);
        errors[i] = value - e2m1(value / scale) * scale;
        NativeF32 sum{};
#pragma GCC unroll 16
        for (int j = 0; j <= i; ++j) sum = fma(splat(gram[16 * i + j]), errors[j], sum);
        loss = fma(sum, errors[i], loss);
      }
      const bool is_first = r == 0;
      best_scale = is_first ? block_scale : (loss < best_loss ? block_scale : best_scale);
      best_loss = is_first ? loss : (loss < best_loss ? loss : best_loss);
    }
    store_native(scales + lane, best_scale);
  }
}

}  // namespace
}  // namespace ptq::kernels::cpu
