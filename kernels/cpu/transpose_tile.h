#pragma once
// Transposing square tiles of one cache line by one cache line, in vectors of 16 bytes, which every processor has. Private to each file, as
// lanes.h.

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/lanes.h"

namespace ptq::kernels::cpu {
namespace {

/// Elements of a line, so rows and columns of a tile.
template <class E>
constexpr int kTileSide = 64 / static_cast<int>(sizeof(E));

/// Tiles of one row of the output that are written one after the other: with less, memory sees scattered lines, with more, the lines of x
/// that hold the next columns are lost from the caches before they are used.
constexpr int64_t kTilesPerRun = 8;

/// The first (kUpper: last) halves of a and b, element by element in turn.
template <bool kUpper, class V, int... kIndex>
PTQ_INLINE V interleave(V a, V b, std::integer_sequence<int, kIndex...>) {
  constexpr int kCount = static_cast<int>(sizeof...(kIndex));
  return __builtin_shufflevector(a, b, (kIndex / 2 + (kUpper ? kCount / 2 : 0) + (kIndex % 2 ? kCount : 0))...);
}

/// out[c][r] = x[r][c] for a block of 16 bytes by 16 bytes. Dealing the upper half of the rows in between the lower half moves a bit of an
/// element's row number into its column number; after as many times as there are bits, the two have changed places.
template <class E>
PTQ_INLINE void transpose_block(const E* x, int64_t x_stride, E* out, int64_t out_stride) {
  constexpr int kSide = 16 / static_cast<int>(sizeof(E));
  using Indices = std::make_integer_sequence<int, kSide>;
  typedef E Vector __attribute__((vector_size(16)));
  Vector rows[kSide], shuffled[kSide];
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) __builtin_memcpy(&rows[i], x + i * x_stride, 16);
#pragma GCC unroll 4
  for (int step = 1; step < kSide; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kSide / 2; ++i) {
      shuffled[2 * i] = interleave<false>(rows[i], rows[i + kSide / 2], Indices{});
      shuffled[2 * i + 1] = interleave<true>(rows[i], rows[i + kSide / 2], Indices{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) rows[i] = shuffled[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) __builtin_memcpy(out + i * out_stride, &rows[i], 16);
}

/// tile[c][r] = x[r][c] for a whole tile; tile [kTileSide][kTileSide].
template <class E>
PTQ_INLINE void transpose_tile(const E* x, int64_t x_stride, E* tile) {
  constexpr int kSide = kTileSide<E>, kBlock = kSide / 4;
  for (int r = 0; r < kSide; r += kBlock)
    for (int c = 0; c < kSide; c += kBlock) transpose_block(x + r * x_stride + c, x_stride, tile + c * kSide + r, kSide);
}

/// Columns of a transposed tile to rows of the output: out[c][0 .. rows) for c < columns.
template <class E>
PTQ_INLINE void store_tile(const E* tile, int rows, int columns, E* out, int64_t out_stride) {
  constexpr int kSide = kTileSide<E>;
  if (rows == kSide) {
    for (int c = 0; c < columns; ++c) __builtin_memcpy(out + c * out_stride, tile + c * kSide, 64);
  } else {
    for (int c = 0; c < columns; ++c) __builtin_memcpy(out + c * out_stride, tile + c * kSide, static_cast<size_t>(rows) * sizeof(E));
  }
}

}  // namespace
}  // namespace ptq::kernels::cpu
