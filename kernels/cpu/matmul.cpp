// y = x Wᵀ: a task owns a tile of y, walks the depth in blocks, packs its rows of W once per block and runs all its tokens over them.

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/scratch.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kTileOutputs = 512;  // times kPanelDepth: what stays in L2 while tokens stream by

const PanelKernels& panel_kernels_of(MatmulKernel kernel) {
  switch (kernel) {
#if defined(__x86_64__)
    case MatmulKernel::kAvx512Bf16:
      return kPanelAvx512Bf16;
    case MatmulKernel::kAvx512:
      return kPanelAvx512;
    case MatmulKernel::kAvx2:
      return kPanelAvx2;
#endif
    default:
      return kPanelBaseline;
  }
}

bool is_supported(MatmulKernel kernel) {
  switch (kernel) {
    case MatmulKernel::kAvx512Bf16:
      return has_bf16_pairs();
    case MatmulKernel::kAvx512:
      return best_isa() >= Isa::kAvx512;
    case MatmulKernel::kAvx2:
      return best_isa() >= Isa::kAvx2;
    default:
      return true;
  }
}

MatmulKernel widest_f32() {
  for (const MatmulKernel kernel : {MatmulKernel::kAvx512, MatmulKernel::kAvx2})
    if (is_supported(kernel)) return kernel;
  return MatmulKernel::kScalar;
}

std::atomic<MatmulKernel>& current_kernel() {
  static std::atomic<MatmulKernel> kernel{best_matmul_kernel()};
  return kernel;
}

struct Product {
  const Tensor& x;
  const Tensor& w;
  Tensor& y;
  const PanelKernels& kernels;
  int64_t tokens, outputs, depth;
};

/// Packs rows [o, o+rows) x columns [c, c+count) of w.
void pack(const Product& product, int64_t o, int rows, int64_t c, int64_t count, float* panel) {
  const int64_t at = o * product.depth + c;
  switch (product.w.dtype()) {
    case DType::kBF16:
      product.kernels.pack_bf16(reinterpret_cast<const uint16_t*>(product.w.raw()) + at, product.depth, rows, count, panel);
      return;
    case DType::kF32:
      product.kernels.pack_f32(product.w.data<float>() + at, product.depth, rows, count, panel);
      return;
    default:
      break;
  }
  thread_local Scratch scratch;
  float* const widened = scratch.floats(kMaxPanelWidth * kPanelDepth);
  for (int row = 0; row < rows; ++row)
    row_kernels().widen(product.w.data<F16>() + at + row * product.depth, Source::kF16, count, widened + row * kPanelDepth);
  product.kernels.pack_f32(widened, kPanelDepth, rows, count, panel);
}

void copy_tokens(const Product& product, int64_t t, int rows, int64_t c, int64_t count, float* x_panel) {
  const int64_t at = t * product.depth + c;
  if (product.x.dtype() == DType::kBF16)
    product.kernels.copy_bf16(reinterpret_cast<const uint16_t*>(product.x.raw()) + at, product.depth, rows, count, x_panel);
  else
    product.kernels.copy_f32(product.x.data<float>() + at, product.depth, rows, count, x_panel);
}

/// One tile of y whose right edge is ragged: computed beside y, and only the valid columns copied.
void tile_at_edge(const PanelKernels& kernels, int rows, int columns, const float* x_panel, const float* panel, int64_t steps, float* y,
                  int64_t y_stride, bool first) {
  alignas(64) float tile[kMaxTileTokens * kMaxPanelWidth] = {};
  for (int row = 0; row < rows && !first; ++row) std::copy_n(y + row * y_stride, columns, tile + row * kernels.width);
  kernels.tile(rows, x_panel, panel, steps, tile, kernels.width, first);
  for (int row = 0; row < rows; ++row) std::copy_n(tile + row * kernels.width, columns, y + row * y_stride);
}

/// y[t0, t1) x [o0, o1), with bias[o] for every output of the whole product or null.
void compute_tile(const Product& product, const float* bias, int64_t t0, int64_t t1, int64_t o0, int64_t o1) {
  const PanelKernels& kernels = product.kernels;
  const int64_t width = kernels.width, panels = (o1 - o0 + width - 1) / width, panel_floats = kPanelDepth * width;
  thread_local Scratch scratch;
  float* const x_panel = scratch.floats(kMaxTileTokens * kXStride + panels * panel_floats);
  float* const w_panels = x_panel + kMaxTileTokens * kXStride;

  const int64_t block = kPanelDepth * kernels.values_per_step;
  for (int64_t c = 0; c < product.depth; c += block) {
    const int64_t count = std::min(block, product.depth - c);
    const int64_t steps = (count + kernels.values_per_step - 1) / kernels.values_per_step;
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t o = o0 + p * width;
      pack(product, o, static_cast<int>(std::min(width, o1 - o)), c, count, w_panels + p * panel_floats);
    }
    for (int64_t t = t0; t < t1; t += kernels.tokens) {
      const int rows = static_cast<int>(std::min<int64_t>(kernels.tokens, t1 - t));
      copy_tokens(product, t, rows, c, count, x_panel);
      float* const y = product.y.data<float>() + t * product.outputs;
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t o = o0 + p * width;
        const float* const panel = w_panels + p * panel_floats;
        // The next tile starts by reading its part of y, one far row after the other: nothing else would have it ready.
        for (int row = 0; row < rows && p + 1 < panels; ++row)
          for (int64_t line = 0; line < width; line += 16) __builtin_prefetch(y + row * product.outputs + o + width + line, 1);
        if (o + width <= o1)
          kernels.tile(rows, x_panel, panel, steps, y + o, product.outputs, c == 0);
        else
          tile_at_edge(kernels, rows, static_cast<int>(o1 - o), x_panel, panel, steps, y + o, product.outputs, c == 0);
      }
      if (bias && c + count == product.depth)
        for (int row = 0; row < rows; ++row) row_kernels().add(y + row * product.outputs + o0, bias + o0, o1 - o0);
    }
  }
}

}  // namespace

MatmulKernel best_matmul_kernel() {
  MatmulKernel best = has_bf16_pairs() && !is_intel() ? MatmulKernel::kAvx512Bf16 : widest_f32();
  const char* const wanted = std::getenv("PTQ_MATMUL_KERNEL");
  if (!wanted || !*wanted) return best;
  for (int k = 0; k <= static_cast<int>(MatmulKernel::kAvx512Bf16); ++k)
    if (const auto kernel = static_cast<MatmulKernel>(k); cpu::to_string(kernel) == wanted) {
      if (!is_supported(kernel))
        throw user_error("this processor cannot run the matrix product '" + std::string(wanted) + "'", "PTQ_MATMUL_KERNEL",
                         "unset it or choose a weaker one: scalar, avx2, avx512");
      return kernel;
    }
  throw user_error("unknown matrix product '" + std::string(wanted) + "'", "PTQ_MATMUL_KERNEL",
                   "use one of: scalar, avx2, avx512, avx512_bf16");
}

void set_matmul_kernel(MatmulKernel kernel) {
  require(is_supported(kernel), "this processor lacks the matmul kernel");
  current_kernel() = kernel;
}
MatmulKernel matmul_kernel() { return current_kernel(); }

std::string to_string(MatmulKernel kernel) {
  switch (kernel) {
    case MatmulKernel::kScalar:
      return "scalar";
    case MatmulKernel::kAvx2:
      return "avx2";
    case MatmulKernel::kAvx512:
      return "avx512";
    case MatmulKernel::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "?";
}

const PanelKernels& panel_kernels() {
  switch (isa()) {
    case Isa::kAvx512:
      return panel_kernels_of(MatmulKernel::kAvx512);
    case Isa::kAvx2:
      return panel_kernels_of(MatmulKernel::kAvx2);
    default:
      return kPanelBaseline;
  }
}

const PanelKernels& product_kernels(bool bf16_by_bf16) {
  const MatmulKernel chosen = matmul_kernel();
  const MatmulKernel f32_kernel = chosen == MatmulKernel::kAvx512Bf16 ? MatmulKernel::kAvx512 : chosen;
  return panel_kernels_of(bf16_by_bf16 ? chosen : f32_kernel);
}

void matmul(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y) {
  const int64_t tokens = x.dim(0), outputs = w.dim(0), depth = x.dim(1);
  require(x.rank() == 2 && w.rank() == 2 && w.dim(1) == depth, "matmul: x [T, C] and w [O, C] do not fit");
  require(y.rank() == 2 && y.dim(0) == tokens && y.dim(1) == outputs && y.dtype() == DType::kF32, "matmul: y is not [T, O] f32");
  require(!bias.defined() || bias.numel() == outputs, "matmul: bias is not [O]");
  require(x.dtype() == DType::kBF16 || x.dtype() == DType::kF32, "matmul: x is neither bf16 nor f32");
  require(w.dtype() == DType::kBF16 || w.dtype() == DType::kF16 || w.dtype() == DType::kF32, "matmul: w is not a float");
  if (tokens == 0 || outputs == 0) return;
  require(depth > 0, "matmul: no columns");

  const bool pairs = x.dtype() == DType::kBF16 && w.dtype() == DType::kBF16;
  const PanelKernels& kernels = product_kernels(pairs);
  Scratch bias_scratch;
  const float* const bias_f32 = bias.defined() ? widened(bias, bias_scratch) : nullptr;

  // Enough tasks that no thread waits long for the last one. A task packs its rows of W and copies its tokens: tall tasks share the first,
  // wide ones the second. Packing costs more, so outputs are cut first, tokens below half a thousand last.
  const int64_t wanted_tasks = num_threads() == 1 ? 1 : 4 * num_threads();
  int64_t tile_outputs = kTileOutputs, tile_tokens = tokens;
  const auto tasks = [&] { return ((outputs + tile_outputs - 1) / tile_outputs) * ((tokens + tile_tokens - 1) / tile_tokens); };
  const auto cut_outputs = [&](int64_t least) {
    while (tasks() < wanted_tasks && tile_outputs > least) tile_outputs = std::max(tile_outputs / 2, least);
  };
  const auto cut_tokens = [&](int64_t least) {
    while (tasks() < wanted_tasks && tile_tokens > least)
      tile_tokens = std::max((tile_tokens / 2 + kernels.tokens - 1) / kernels.tokens * kernels.tokens, least);
  };
  cut_outputs(kTileOutputs / 2);
  cut_tokens(36 * kernels.tokens);
  cut_outputs(kTileOutputs / 4);
  cut_tokens(16 * kernels.tokens);
  cut_outputs(kernels.width);
  const int64_t output_tiles = (outputs + tile_outputs - 1) / tile_outputs;

  const Product product{x, w, y, kernels, tokens, outputs, depth};
  parallel_for(tasks(), [&](int64_t task) {
    const int64_t o = task % output_tiles * tile_outputs, t = task / output_tiles * tile_tokens;
    compute_tile(product, bias_f32, t, std::min(tokens, t + tile_tokens), o, std::min(outputs, o + tile_outputs));
  });
}

}  // namespace ptq::kernels::cpu
