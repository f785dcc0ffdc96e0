#pragma once
// Sums of exponentials over one row of logits, in f64. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/exp.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {
namespace {

float max(const float* x, int64_t count) {
  Lanes<float> highest = Lanes<float>::all(-__builtin_inff());
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) highest = max(Lanes<float>::load(x + i), highest);
  float lanes[16];
  highest.store(lanes);
  float largest = lanes[0];
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

PTQ_INLINE Lanes<double> exp(Lanes<double> x) {
  for (int p = 0; p < kParts; ++p) x.part[p] = exp_f64(x.part[p]);
  return x;
}

/// 8 logits less their maximum.
PTQ_INLINE Lanes<double> load_relative(const float* x, float max) {
  typedef float HalfF32 __attribute__((vector_size(kNativeBytes / 2)));
  Lanes<double> relative;
  for (int p = 0; p < kParts; ++p) {
    HalfF32 values;
    __builtin_memcpy(&values, x + p * Lanes<double>::kNativeCount, sizeof(values));
    relative.part[p] = __builtin_convertvector(values, NativeF64) - static_cast<double>(max);
  }
  return relative;
}

/// The last 1..7 logits of a row, filled up with one whose e^x is 0.
PTQ_INLINE void copy_tail(const float* x, int64_t count, float* tail) {
  for (int64_t lane = 0; lane < 8; ++lane) tail[lane] = lane < count ? x[lane] : -3.0e38f;
}

double sum_exp(const float* x, int64_t count, float max) {
  Lanes<double> sum = Lanes<double>::all(0.0);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) sum = sum + exp(load_relative(x + i, max));
  if (i < count) {
    float tail[8];
    copy_tail(x + i, count - i, tail);
    sum = sum + exp(load_relative(tail, max));
  }
  return sum_of(sum);
}

void agreement(const float* reference, const float* x, int64_t count, AgreementSums& sums) {
  Lanes<double> reference_sum = Lanes<double>::all(0.0), sum = reference_sum, cross = reference_sum;
  const auto add_8 = [&](const float* r_at, const float* x_at) {
    const Lanes<double> r = load_relative(r_at, sums.reference_max), s = load_relative(x_at, sums.max);
    const Lanes<double> weight = exp(r);
    reference_sum = reference_sum + weight;
    sum = sum + exp(s);
    cross = fma(weight, r - s, cross);
  };
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) add_8(reference + i, x + i);
  if (i < count) {
    float r_tail[8], x_tail[8];
    copy_tail(reference + i, count - i, r_tail);
    copy_tail(x + i, count - i, x_tail);
    add_8(r_tail, x_tail);
  }
  sums.reference_sum = sum_of(reference_sum);
  sums.sum = sum_of(sum);
  sums.cross = sum_of(cross);
}

}  // namespace
}  // namespace ptq::kernels::cpu
