// Compiled with AVX-512; only called where isa() says so.
#include "kernels/cpu/panel_softmax.h"
#include "kernels/cpu/transpose_avx512.h"

namespace ptq::kernels::cpu {

namespace {
static_assert(kPanelWidth == 32);

void pack_f32(const float* w, int64_t stride, int rows, int64_t count, void* panel) {
  pack_transposed(rows, count, static_cast<int*>(panel), [&](int row, int64_t c, int64_t valid) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << valid) - 1), w + row * stride + c);
  });
}
void pack_bf16(const uint16_t* w, int64_t stride, int rows, int64_t count, void* panel) {
  pack_transposed(rows, count, static_cast<int*>(panel), [&](int row, int64_t c, int64_t valid) {
    const __m256i values = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << valid) - 1), w + row * stride + c);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16);
  });
}
}  // namespace

const PanelKernels kPanelAvx512 = {kTileTokens, kPanelWidth,     1,       pack_f32,      pack_bf16,   copy_f32,        copy_bf16,
                                   tile,        tile_of_columns, softmax, scale_columns, dot_columns, softmax_gradient};

}  // namespace ptq::kernels::cpu
