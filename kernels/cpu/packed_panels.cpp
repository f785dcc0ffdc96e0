#include "kernels/cpu/packed_panels.h"

#include <algorithm>
#include <cstddef>

#include "kernels/core/thread_pool.h"

namespace ptq::kernels::cpu {

namespace {
constexpr int64_t kTooSmallForThreads = 32768;  // elements that are packed before another thread has woken up
const std::byte* at(const void* base, int64_t bytes) { return static_cast<const std::byte*>(base) + bytes; }
}  // namespace

void PackedPanels::pack(const void* w, int64_t stride, int64_t outputs, int64_t depth) {
  outputs_ = outputs;
  depth_ = depth;
  const int64_t block = kPanelDepth * kernels_->values_per_step, blocks = (depth + block - 1) / block, width = kernels_->width;
  packed_ = memory_.floats(blocks * panels() * panel_floats());
  const auto pack_panel = [&](int64_t p) {
    const int rows = static_cast<int>(std::min(width, outputs - p * width));
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = std::min(block, depth - b * block);
      const std::byte* const from = at(w, (p * width * stride + b * block) * element_bytes());
      float* const to = packed_ + (b * panels() + p) * panel_floats();
      if (is_bf16_)
        kernels_->pack_bf16(reinterpret_cast<const uint16_t*>(from), stride, rows, count, to);
      else
        kernels_->pack_f32(reinterpret_cast<const float*>(from), stride, rows, count, to);
    }
  };
  if (outputs * depth < kTooSmallForThreads)
    for (int64_t p = 0; p < panels(); ++p) pack_panel(p);
  else
    parallel_for(panels(), pack_panel);
}

void PackedPanels::multiply(const void* x, int64_t x_stride, int64_t rows, int64_t first_output, int64_t last_output, float* y,
                            int64_t y_stride, bool from_zero, const WantedNext& wanted) const {
  const int64_t block = kPanelDepth * kernels_->values_per_step, width = kernels_->width;
  alignas(64) float x_panel[kMaxTileTokens * kXStride], edge[kMaxTileTokens * kMaxPanelWidth] = {};
  for (int64_t c = 0; c < depth_; c += block) {
    const int64_t count = std::min(block, depth_ - c), steps = (count + kernels_->values_per_step - 1) / kernels_->values_per_step;
    const float* const panels_here = packed_ + c / block * panels() * panel_floats();
    const bool is_first = from_zero && c == 0;
    for (int64_t t = 0; t < rows; t += kernels_->tokens) {
      const int tile_rows = static_cast<int>(std::min<int64_t>(kernels_->tokens, rows - t));
      const std::byte* const from = at(x, (t * x_stride + c) * element_bytes());
      if (is_bf16_)
        kernels_->copy_bf16(reinterpret_cast<const uint16_t*>(from), x_stride, tile_rows, count, x_panel);
      else
        kernels_->copy_f32(reinterpret_cast<const float*>(from), x_stride, tile_rows, count, x_panel);
      for (int64_t o = first_output; o < last_output; o += width) {
        const float* const panel = panels_here + o / width * panel_floats();
        float* const to = y + t * y_stride + (o - first_output);
        if (wanted.data && c + count == depth_)
          for (int row = 0; row < tile_rows; ++row)
            for (int64_t column = o - first_output; column < std::min(o + width, last_output) - first_output; column += 16)
              __builtin_prefetch(wanted.data + (t + row) * wanted.stride + column, 1, 2);
        if (o + width <= last_output) {
          // As in matmul: nothing else would have the next tile's part of y ready.
          for (int row = 0; row < tile_rows && o + 2 * width <= last_output; ++row)
            for (int64_t line = 0; line < width; line += 16) __builtin_prefetch(to + row * y_stride + width + line, 1);
          kernels_->tile(tile_rows, x_panel, panel, steps, to, y_stride, is_first);
          continue;
        }
        for (int row = 0; row < tile_rows && !is_first; ++row)
          std::copy_n(to + row * y_stride, last_output - o, edge + row * kMaxPanelWidth);
        kernels_->tile(tile_rows, x_panel, panel, steps, edge, kMaxPanelWidth, is_first);
        for (int row = 0; row < tile_rows; ++row) std::copy_n(edge + row * kMaxPanelWidth, last_output - o, to + row * y_stride);
      }
    }
  }
}

}  // namespace ptq::kernels::cpu
