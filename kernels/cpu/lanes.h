#pragma once
// Vectors of the width this translation unit is compiled for, in groups of 64 bytes (16 f32, 8 f64), so that the order of every sum is the
// same on every instruction set. Everything here is inlined and private to its file: nothing of one instruction set leaks into another.
// Fused multiply-adds are written as such; without the hardware they are slow and give the same bits.

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PTQ_INLINE [[gnu::always_inline]] inline

namespace ptq::kernels::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kNativeBytes = 64;
#elif defined(__AVX2__)
constexpr int kNativeBytes = 32;
#else
constexpr int kNativeBytes = 16;
#endif
constexpr int kParts = 64 / kNativeBytes;

typedef float NativeF32 __attribute__((vector_size(kNativeBytes)));
typedef double NativeF64 __attribute__((vector_size(kNativeBytes)));
typedef uint32_t NativeU32 __attribute__((vector_size(kNativeBytes)));
typedef uint64_t NativeU64 __attribute__((vector_size(kNativeBytes)));

template <class E>
struct NativeOf;
template <>
struct NativeOf<float> {
  using Type = NativeF32;
};
template <>
struct NativeOf<double> {
  using Type = NativeF64;
};
/// The unsigned integers of the same width, lane by lane: for looking at a float's bits.
template <class F>
struct BitsOf;
template <>
struct BitsOf<float> {
  using Type = uint32_t;
};
template <>
struct BitsOf<double> {
  using Type = uint64_t;
};
template <>
struct BitsOf<NativeF32> {
  using Type = NativeU32;
};
template <>
struct BitsOf<NativeF64> {
  using Type = NativeU64;
};

PTQ_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
PTQ_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#if defined(__AVX512F__)
PTQ_INLINE NativeF32 fma(NativeF32 a, NativeF32 b, NativeF32 c) { return _mm512_fmadd_ps(a, b, c); }
PTQ_INLINE NativeF64 fma(NativeF64 a, NativeF64 b, NativeF64 c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
PTQ_INLINE NativeF32 fma(NativeF32 a, NativeF32 b, NativeF32 c) { return _mm256_fmadd_ps(a, b, c); }
PTQ_INLINE NativeF64 fma(NativeF64 a, NativeF64 b, NativeF64 c) { return _mm256_fmadd_pd(a, b, c); }
#else
PTQ_INLINE NativeF32 fma(NativeF32 a, NativeF32 b, NativeF32 c) {
  for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
PTQ_INLINE NativeF64 fma(NativeF64 a, NativeF64 b, NativeF64 c) {
  for (int i = 0; i < 2; ++i) c[i] = __builtin_fma(a[i], b[i], c[i]);
  return c;
}
#endif

/// Every lane this value, -0 included: x - 0 is x, where x + 0 would not be.
PTQ_INLINE NativeF32 splat(float value) { return value - NativeF32{}; }
PTQ_INLINE NativeF64 splat(double value) { return value - NativeF64{}; }

/// 64 bytes of float or double.
template <class E>
struct Lanes {
  using Native = typename NativeOf<E>::Type;
  static constexpr int kCount = 64 / static_cast<int>(sizeof(E));
  static constexpr int kNativeCount = kCount / kParts;
  Native part[kParts];

  PTQ_INLINE static Lanes all(E value) {
    Lanes lanes;
    for (int p = 0; p < kParts; ++p) lanes.part[p] = splat(value);
    return lanes;
  }
  PTQ_INLINE static Lanes load(const E* from) {
    Lanes lanes;
    for (int p = 0; p < kParts; ++p) __builtin_memcpy(&lanes.part[p], from + p * kNativeCount, kNativeBytes);
    return lanes;
  }
  PTQ_INLINE void store(E* to) const {
    for (int p = 0; p < kParts; ++p) __builtin_memcpy(to + p * kNativeCount, &part[p], kNativeBytes);
  }
};

template <class E>
PTQ_INLINE Lanes<E> fma(const Lanes<E>& a, const Lanes<E>& b, Lanes<E> c) {
  for (int p = 0; p < kParts; ++p) c.part[p] = fma(a.part[p], b.part[p], c.part[p]);
  return c;
}
template <class E>
PTQ_INLINE Lanes<E> operator+(Lanes<E> a, const Lanes<E>& b) {
  for (int p = 0; p < kParts; ++p) a.part[p] += b.part[p];
  return a;
}
template <class E>
PTQ_INLINE Lanes<E> operator-(Lanes<E> a, const Lanes<E>& b) {
  for (int p = 0; p < kParts; ++p) a.part[p] -= b.part[p];
  return a;
}
template <class E>
PTQ_INLINE Lanes<E> operator*(Lanes<E> a, const Lanes<E>& b) {
  for (int p = 0; p < kParts; ++p) a.part[p] *= b.part[p];
  return a;
}
/// Per lane a > b ? a : b, as the processor's max does it.
template <class E>
PTQ_INLINE Lanes<E> max(Lanes<E> a, const Lanes<E>& b) {
  for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] > b.part[p] ? a.part[p] : b.part[p];
  return a;
}
/// Sum of the lanes, halves first: lane i + lane i+count/2, and so on.
template <class E>
PTQ_INLINE E sum_of(const Lanes<E>& lanes) {
  E values[Lanes<E>::kCount];
  lanes.store(values);
  for (int half = Lanes<E>::kCount / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

}  // namespace
}  // namespace ptq::kernels::cpu
