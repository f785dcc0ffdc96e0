#pragma once
// e^x for float, double and their vectors: one formula for all, so scalar tails and vector bodies agree bit for bit. Relative error about
// 1e-7 (f32) and 3e-16 (f64). Private to each file, as lanes.h.

#include "kernels/cpu/lanes.h"

namespace ptq::kernels::cpu {
namespace {

/// e^x = 2^n · e^r with |r| ≤ ln2/2, e^r by its Taylor polynomial. 0 below -87; x above 88 counts as 88.
template <class F>  // float or NativeF32
PTQ_INLINE F exp_f32(F x) {
  using U = typename BitsOf<F>::Type;
  const F lowest = F{} - 87.0f, highest = F{} + 88.0f, shift = F{} + 0x1.8p23f;  // adding 1.5·2²³ leaves n in the low mantissa bits
  const F bounded = x < highest ? x : highest;
  const F shifted = fma(bounded, F{} + 0x1.715476p+0f, shift);
  const F n = shifted - shift;
  const F r = fma(n, F{} + 0x1.05c61p-29f, fma(n, F{} - 0x1.62e43p-1f, bounded));
  F e = F{} + 1.0f / 5040;
  e = fma(e, r, F{} + 1.0f / 720);
  e = fma(e, r, F{} + 1.0f / 120);
  e = fma(e, r, F{} + 1.0f / 24);
  e = fma(e, r, F{} + 1.0f / 6);
  e = fma(e, r, F{} + 0.5f);
  e = fma(e, r, F{} + 1.0f);
  e = fma(e, r, F{} + 1.0f);
  const F scaled = __builtin_bit_cast(F, __builtin_bit_cast(U, e) + (__builtin_bit_cast(U, shifted) << 23));
  return bounded < lowest ? F{} : scaled;
}

/// The same in f64; 0 below -700. x ≤ 700.
template <class F>  // double or NativeF64
PTQ_INLINE F exp_f64(F x) {
  using U = typename BitsOf<F>::Type;
  const F lowest = F{} - 700.0, shift = F{} + 0x1.8p52;
  const F shifted = fma(x, F{} + 0x1.71547652b82fep+0, shift);
  const F n = shifted - shift;
  const F r = fma(n, F{} - 0x1.abc9e3b39803fp-56, fma(n, F{} - 0x1.62e42fefa39efp-1, x));
  constexpr double kInverseFactorials[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                                           1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
  F e = F{} + 1.0 / 6227020800;
#pragma GCC unroll 16
  for (const double coefficient : kInverseFactorials) e = fma(e, r, F{} + coefficient);
  const F scaled = __builtin_bit_cast(F, __builtin_bit_cast(U, e) + (__builtin_bit_cast(U, shifted) << 52));
  return x < lowest ? F{} : scaled;
}

}  // namespace
}  // namespace ptq::kernels::cpu
