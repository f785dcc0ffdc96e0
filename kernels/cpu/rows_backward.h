#pragma once
// Gradients of norms, activations and softmax of one row. Results may overwrite the gradient they come from: a loop reads an element
// before it writes it and looks at no other. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_loss.h"
#include "kernels/cpu/rows_norm.h"

namespace ptq::kernels::cpu {
namespace {

/// Σ term of several arrays at once, in the order of sum_in_lanes. Elements beyond `count` are 0 in all of them, and so must their term be.
template <int kArrays, class Term>
PTQ_INLINE float sum_in_lanes(const float* const (&arrays)[kArrays], int64_t count, Term term) {
  Lanes<float> low = Lanes<float>::all(0.0f), high = low;
  const auto add_32 = [&](const float* const(&at)[kArrays]) {
    Lanes<float> first[kArrays], second[kArrays];
    for (int a = 0; a < kArrays; ++a) {
      first[a] = Lanes<float>::load(at[a]);
      second[a] = Lanes<float>::load(at[a] + 16);
    }
    low = term(first, low);
    high = term(second, high);
  };
  const float* at[kArrays];
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    for (int a = 0; a < kArrays; ++a) at[a] = arrays[a] + i;
    add_32(at);
  }
  if (i < count) {
    float tails[kArrays][32];
    for (int a = 0; a < kArrays; ++a) {
      for (int64_t j = 0; j < 32; ++j) tails[a][j] = i + j < count ? arrays[a][i + j] : 0.0f;
      at[a] = tails[a];
    }
    add_32(at);
  }
  return sum_of(low + high);
}

void rms_norm_backward(const float* x, const float* w, const float* dy, int64_t count, float eps, float* dx) {
  const float factor = inverse_rms(x, count, eps);
  const float dot =
      sum_in_lanes({x, w, dy}, count, [](const Lanes<float>(&at)[3], const Lanes<float>& sum) { return fma(at[0], at[1] * at[2], sum); });
  const float pull = factor * factor * (dot / static_cast<float>(count));
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) dx[i] = factor * (w[i] * dy[i] - x[i] * pull);
}

void layer_norm_1p_backward(const float* x, const float* w, const float* dy, int64_t count, float eps, float* dx) {
  const Centred centred = centre(x, count, eps);
  const float mean = centred.mean, factor = centred.factor;
  const Lanes<float> means = Lanes<float>::all(mean), one = Lanes<float>::all(1.0f);
  const float total =
      sum_in_lanes({w, dy}, count, [&](const Lanes<float>(&at)[2], const Lanes<float>& sum) { return sum + (one + at[0]) * at[1]; });
  const float dot = sum_in_lanes({x, w, dy}, count, [&](const Lanes<float>(&at)[3], const Lanes<float>& sum) {
    return fma(at[0] - means, (one + at[1]) * at[2], sum);
  });
  const float shift = total / static_cast<float>(count), pull = factor * factor * (dot / static_cast<float>(count));
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) dx[i] = factor * ((1.0f + w[i]) * dy[i] - shift - (x[i] - mean) * pull);
}

/// Calls f(gate, up, dy, dgate, dup) for each element of arrays that are `stride` apart, dy apart. The stride is a constant inside, or the
/// loop would not become vectors.
template <class Gradient>
PTQ_INLINE void gate_pairs_backward(const float* gate, const float* up, const float* dy, int64_t stride, int64_t count, float* dgate,
                                    float* dup, Gradient f) {
  if (stride == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) f(gate[i], up[i], dy[i], dgate[i], dup[i]);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) f(gate[2 * i], up[2 * i], dy[i], dgate[2 * i], dup[2 * i]);
  }
}

void silu_mul_backward(const float* gate, const float* up, const float* dy, int64_t stride, int64_t count, float* dgate, float* dup) {
  gate_pairs_backward(gate, up, dy, stride, count, dgate, dup, [](float g, float u, float d, float& dg, float& du) {
    const float e = exp_f32(-g), s = 1.0f / (1.0f + e);
    dg = d * u * s * (1.0f + g * (e * s));  // e·s is 1-s without its rounding
    du = d * g * s;
  });
}

void clamped_gate_backward(const float* gate, const float* up, const float* dy, int64_t stride, int64_t count, float alpha, float limit,
                           float* dgate, float* dup) {
  gate_pairs_backward(gate, up, dy, stride, count, dgate, dup, [=](float gate_in, float up_in, float d, float& dg, float& du) {
    const float g = gate_in > limit ? limit : gate_in;
    const float u = up_in > limit ? limit : up_in < -limit ? -limit : up_in;
    const float e = exp_f32(-(alpha * g)), s = 1.0f / (1.0f + e);
    const float by_gate = d * (u + 1.0f) * s * (1.0f + alpha * g * (e * s)), by_up = d * g * s;
    dg = gate_in > limit ? 0.0f : by_gate;
    du = up_in > limit || up_in < -limit ? 0.0f : by_up;
  });
}

void relu_squared_backward(const float* x, const float* dy, int64_t count, float* dx) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) dx[i] = dy[i] * (2.0f * (x[i] > 0.0f ? x[i] : 0.0f));
}

void scaled_exp(float* x, int64_t count, float max, float factor) {
  for (int64_t i = 0; i < count; ++i) x[i] = factor * exp_f32(x[i] - max);
}

void bin_squared_products(const float* a, const float* b, int64_t count, int64_t* bins) {
  constexpr int64_t kStretch = 256;
  uint32_t squares[kStretch];
  for (int64_t begin = 0; begin < count; begin += kStretch) {
    const int64_t stretch = count - begin < kStretch ? count - begin : kStretch;
    for (int64_t i = 0; i < stretch; ++i) {
      const float product = a[begin + i] * b[begin + i], square = product * product;
      squares[i] = __builtin_bit_cast(uint32_t, square < 1e20f ? square : 1e20f);  // compared this way round, NaN becomes the limit
    }
    for (int64_t i = 0; i < stretch; ++i) {
      const uint32_t exponent = squares[i] >> 23, hidden_bit = exponent != 0 ? 1u << 23 : 0;
      bins[exponent] += (squares[i] & 0x7fffffu) | hidden_bit;
    }
  }
}

}  // namespace
}  // namespace ptq::kernels::cpu
