#pragma once
// Norms, rotary embedding and activations of one row. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/exp.h"
#include "kernels/cpu/rows_convert.h"

namespace ptq::kernels::cpu {
namespace {

/// Σ term(x_i) in f32 over 32 chains of every 32nd element, then pairwise: the order depends on `count` alone. `padding` is an x whose term
/// is 0.
template <class Term>
PTQ_INLINE float sum_in_lanes(const float* x, int64_t count, float padding, Term term) {
  Lanes<float> low = Lanes<float>::all(0.0f), high = low;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    low = term(Lanes<float>::load(x + i), low);
    high = term(Lanes<float>::load(x + i + 16), high);
  }
  if (i < count) {
    float tail[32];
    for (int64_t j = 0; j < 32; ++j) tail[j] = i + j < count ? x[i + j] : padding;
    low = term(Lanes<float>::load(tail), low);
    high = term(Lanes<float>::load(tail + 16), high);
  }
  return sum_of(low + high);
}

/// rsqrt(mean(x²) + eps).
PTQ_INLINE float inverse_rms(const float* x, int64_t count, float eps) {
  const float squares =
      sum_in_lanes(x, count, 0.0f, [](const Lanes<float>& value, const Lanes<float>& sum) { return fma(value, value, sum); });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(count) + eps);
}

void rms_norm(const float* x, const float* w, int64_t count, float eps, void* out, bool to_bf16) {
  const float factor = inverse_rms(x, count, eps);
  write_as(out, to_bf16, [&](auto write) {
    for (int64_t i = 0; i < count; ++i) write(i, w[i] * (x[i] * factor));
  });
}

/// The mean of a row and rsqrt(var + eps), the variance in a second pass.
struct Centred {
  float mean, factor;
};
PTQ_INLINE Centred centre(const float* x, int64_t count, float eps) {
  const float total = sum_in_lanes(x, count, 0.0f, [](const Lanes<float>& value, const Lanes<float>& sum) { return sum + value; });
  const float mean = total / static_cast<float>(count);
  const Lanes<float> means = Lanes<float>::all(mean);
  const float squares = sum_in_lanes(x, count, mean, [&](const Lanes<float>& value, const Lanes<float>& sum) {
    const Lanes<float> centred = value - means;
    return fma(centred, centred, sum);
  });
  return {mean, 1.0f / __builtin_sqrtf(squares / static_cast<float>(count) + eps)};
}

void layer_norm_1p(const float* x, const float* w, const float* bias, int64_t count, float eps, void* out, bool to_bf16) {
  const Centred centred = centre(x, count, eps);
  const float mean = centred.mean, factor = centred.factor;
  write_as(out, to_bf16, [&](auto write) {
    for (int64_t i = 0; i < count; ++i) write(i, fma((x[i] - mean) * factor, 1.0f + w[i], bias[i]));
  });
}

void rope_half(float* x, int64_t half, const float* cos, const float* sin) {
  float* const second = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = second[i];
    x[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

void rope_interleaved(float* x, int64_t half, const float* cos, const float* sin) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

/// Writes f(gate, up) of each pair of elements `stride` apart. The stride is a constant inside, or the loop would not become vectors.
template <class Gated>
PTQ_INLINE void gate_pairs(const float* gate, const float* up, int64_t stride, int64_t count, void* out, bool to_bf16, Gated f) {
  write_as(out, to_bf16, [&](auto write) {
    if (stride == 1)
      for (int64_t i = 0; i < count; ++i) write(i, f(gate[i], up[i]));
    else
      for (int64_t i = 0; i < count; ++i) write(i, f(gate[2 * i], up[2 * i]));
  });
}

void silu_mul(const float* gate, const float* up, int64_t stride, int64_t count, void* out, bool to_bf16) {
  gate_pairs(gate, up, stride, count, out, to_bf16, [](float g, float u) { return g / (1.0f + exp_f32(-g)) * u; });
}

void clamped_gate(const float* gate, const float* up, int64_t stride, int64_t count, float alpha, float limit, void* out, bool to_bf16) {
  gate_pairs(gate, up, stride, count, out, to_bf16, [=](float g, float u) {
    g = g > limit ? limit : g;  // compared this way round, NaN stays NaN
    u = u > limit ? limit : u < -limit ? -limit : u;
    return g / (1.0f + exp_f32(-(alpha * g))) * (u + 1.0f);
  });
}

void relu_squared(const float* x, int64_t count, void* out, bool to_bf16) {
  write_as(out, to_bf16, [&](auto write) {
    for (int64_t i = 0; i < count; ++i) {
      const float positive = x[i] > 0.0f ? x[i] : 0.0f;
      write(i, positive * positive);
    }
  });
}

void add(float* x, const float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += y[i];
}

void add_scaled(float* x, const float* y, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) x[i] += factor * y[i];
}

void scale(const void* x, Source source, int64_t count, float factor, void* out) {
  read_as(x, source, [&](auto reader) {
    write_as(out, source == Source::kBF16, [&](auto write) {
      for (int64_t i = 0; i < count; ++i) write(i, factor * reader[i]);
    });
  });
}

}  // namespace
}  // namespace ptq::kernels::cpu
