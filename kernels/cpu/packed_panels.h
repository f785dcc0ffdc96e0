#pragma once
// One operand of a product, packed once for all tasks that multiply by it: where matmul packs within its tasks, ops that are made of many
// small products share the packing. Elements are the chains of panel_kernels.h, so their bits do not depend on how a product is cut.

#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/scratch.h"

namespace ptq::kernels::cpu {

/// What is read once a product is there, as large as the product: brought near meanwhile from the main memory it may lie in.
struct WantedNext {
  const float* data = nullptr;
  int64_t stride = 0;
};

class PackedPanels {
 public:
  /// Both operands are bf16 if `is_bf16`, else f32. The panels lie in `memory`, which outlives this and serves nothing else meanwhile.
  PackedPanels(const PanelKernels& kernels, bool is_bf16, Scratch& memory) : kernels_(&kernels), is_bf16_(is_bf16), memory_(memory) {}

  /// Takes W [outputs, depth], whose rows lie `stride` elements apart, on all threads if it is large; what was packed before is gone.
  void pack(const void* w, int64_t stride, int64_t outputs, int64_t depth);
  /// y[rows, last - first] (+)= x · W[first .. last)ᵀ, on the calling thread. x [rows, depth], rows `x_stride` elements apart; y rows
  /// `y_stride` floats apart. `first_output` is a multiple of the panel's width. from_zero: the chains start from 0, else from y.
  void multiply(const void* x, int64_t x_stride, int64_t rows, int64_t first_output, int64_t last_output, float* y, int64_t y_stride,
                bool from_zero, const WantedNext& wanted = {}) const;

  /// Rows of x that a tile takes: a good number of rows for multiply is a multiple of it.
  int64_t tile_rows() const { return kernels_->tokens; }

 private:
  int64_t panels() const { return (outputs_ + kernels_->width - 1) / kernels_->width; }
  int64_t panel_floats() const { return kPanelDepth * kernels_->width; }
  int64_t element_bytes() const { return is_bf16_ ? 2 : 4; }

  const PanelKernels* kernels_;
  bool is_bf16_;
  int64_t outputs_ = 0, depth_ = 0;
  Scratch& memory_;  // [⌈depth / what a panel covers⌉][panels][kPanelDepth · width]
  float* packed_ = nullptr;
};

}  // namespace ptq::kernels::cpu
