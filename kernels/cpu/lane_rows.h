#pragma once
// Rows of a matrix as lanes: element [column][lane] belongs to row `lane`, so that what must go column after column goes for many rows at
// once. Private to each file, as transpose_tile.h.

#include <algorithm>

#include "kernels/cpu/transpose_tile.h"

namespace ptq::kernels::cpu {
namespace {

/// out [columns][lanes] = rows ≤ lanes rows of x, `stride` floats apart; lanes without a row are `filler`. lanes is a multiple of 16.
inline void rows_to_lanes(const float* x, int64_t stride, int64_t rows, int64_t columns, int64_t lanes, float filler, float* out) {
  constexpr int kSide = kTileSide<float>;
  alignas(64) float tile[kSide * kSide];
  for (int64_t lane = 0; lane < lanes; lane += kSide)
    for (int64_t c = 0; c < columns; c += kSide) {
      float* const to = out + c * lanes + lane;
      if (lane + kSide <= rows && c + kSide <= columns) {
        transpose_tile(x + lane * stride + c, stride, tile);
        for (int i = 0; i < kSide; ++i) std::copy_n(tile + i * kSide, kSide, to + i * lanes);
        continue;
      }
      for (int64_t i = 0; i < std::min<int64_t>(kSide, columns - c); ++i)
        for (int64_t k = 0; k < kSide; ++k) to[i * lanes + k] = lane + k < rows ? x[(lane + k) * stride + c + i] : filler;
    }
}

/// And back: the lanes that have a row.
inline void lanes_to_rows(const float* from, int64_t lanes, int64_t rows, int64_t columns, float* x, int64_t stride) {
  constexpr int kSide = kTileSide<float>;
  alignas(64) float tile[kSide * kSide];
  for (int64_t lane = 0; lane < rows; lane += kSide)
    for (int64_t c = 0; c < columns; c += kSide) {
      const float* const corner = from + c * lanes + lane;
      float* const to = x + lane * stride + c;
      if (lane + kSide <= rows && c + kSide <= columns) {
        transpose_tile(corner, lanes, tile);
        for (int i = 0; i < kSide; ++i) std::copy_n(tile + i * kSide, kSide, to + i * stride);
        continue;
      }
      for (int64_t k = 0; k < std::min<int64_t>(kSide, rows - lane); ++k)
        for (int64_t i = 0; i < std::min<int64_t>(kSide, columns - c); ++i) to[k * stride + i] = corner[i * lanes + k];
    }
}

}  // namespace
}  // namespace ptq::kernels::cpu
