#pragma once
// Packing of weight rows into panels by plain loops, for instruction sets without a wide transpose. Private to each file, as lanes.h.

#include "kernels/cpu/panel_tile.h"

namespace ptq::kernels::cpu {
namespace {

/// Reads 8 columns of all rows at a time: each cache line of w is used while it is near.
template <class W, class Widen>
PTQ_INLINE void pack_rows(const W* w, int64_t stride, int rows, int64_t count, float* panel, Widen widen) {
  for (int64_t c0 = 0; c0 < count; c0 += 8) {
    const int64_t columns = count - c0 < 8 ? count - c0 : 8;
    float* const to = panel + c0 * kPanelWidth;
    for (int row = 0; row < kPanelWidth; ++row)
      for (int64_t c = 0; c < columns; ++c) to[c * kPanelWidth + row] = row < rows ? widen(w[row * stride + c0 + c]) : 0.0f;
  }
}

void pack_f32(const float* w, int64_t stride, int rows, int64_t count, void* panel) {
  pack_rows(w, stride, rows, count, static_cast<float*>(panel), [](float value) { return value; });
}
void pack_bf16(const uint16_t* w, int64_t stride, int rows, int64_t count, void* panel) {
  pack_rows(w, stride, rows, count, static_cast<float*>(panel), widen_bf16);
}

}  // namespace
}  // namespace ptq::kernels::cpu
