#pragma once
// Statistics of columns and rows, and the scaling of a gram matrix's row. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_convert.h"

namespace ptq::kernels::cpu {
namespace {

void column_maxima(const void* x, Source source, int64_t stride, int64_t rows, int64_t columns, float* amaxes) {
  read_as(x, source, [&](auto reader) {
    for (int64_t t = 0; t < rows; ++t) {
      const auto row = decltype(reader){reader.values + t * stride};
      for (int64_t c = 0; c < columns; ++c) {
        const float magnitude = __builtin_fabsf(row[c]);
        amaxes[c] = magnitude > amaxes[c] ? magnitude : amaxes[c];
      }
    }
  });
}

/// x in units of 2⁻²⁴, nearest, ties to even. A product with a power of two is exact. Below 2²³ a float may have a fraction, and 2²³ has
/// none: adding it makes the processor round.
PTQ_INLINE int64_t in_sum_units(float x) {
  const float units = x * 0x1p24f, whole = __builtin_copysignf(0x1p23f, units), rounded = (units + whole) - whole;
  return static_cast<int64_t>(__builtin_fabsf(units) < 0x1p23f ? rounded : units);
}

template <bool kAbsolute>
PTQ_INLINE void add_columns(const void* x, Source source, int64_t stride, int64_t rows, int64_t columns, int64_t* sums) {
  read_as(x, source, [&](auto reader) {
    for (int64_t t = 0; t < rows; ++t) {
      const auto row = decltype(reader){reader.values + t * stride};
      for (int64_t c = 0; c < columns; ++c) sums[c] += in_sum_units(kAbsolute ? __builtin_fabsf(row[c]) : row[c]);
    }
  });
}
void column_sums(const void* x, Source source, int64_t stride, int64_t rows, int64_t columns, bool absolute, int64_t* sums) {
  if (absolute)
    add_columns<true>(x, source, stride, rows, columns, sums);
  else
    add_columns<false>(x, source, stride, rows, columns, sums);
}

double dot(const float* a, const float* b, int64_t count) {
  double sums[16] = {};
  int64_t c = 0;
  for (; c + 16 <= count; c += 16)
    for (int lane = 0; lane < 16; ++lane) sums[lane] += static_cast<double>(a[c + lane]) * static_cast<double>(b[c + lane]);
  for (int lane = 0; c + lane < count; ++lane) sums[lane] += static_cast<double>(a[c + lane]) * static_cast<double>(b[c + lane]);
  for (int half = 8; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

void scale_by(float* x, const float* factors, float factor, int64_t count) {
  for (int64_t c = 0; c < count; ++c) x[c] *= factors[c] * factor;
}

}  // namespace
}  // namespace ptq::kernels::cpu
