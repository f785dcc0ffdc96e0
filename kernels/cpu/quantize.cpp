#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/format/e2m1.h"
#include "kernels/format/e4m3.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kElementsPerTask = 16 * 2048;  // a multiple of the block: rows are whole blocks, so tasks may ignore where rows end

void require_blocks(const Tensor& w, const Tensor& packed, const Tensor& block_scales) {
  require(w.dim(-1) % kBlock == 0, "nvfp4: the block of 16 does not divide the columns");
  require(packed.numel() * 2 == w.numel() && block_scales.numel() * kBlock == w.numel(), "nvfp4: packed or block_scales has a wrong shape");
}

}  // namespace

void quantize_fp8(const Tensor& w, float scale, Fp8Quotient quotient, Tensor& codes) {
  require(codes.numel() == w.numel() && scale > 0, "quantize_fp8: codes have a wrong shape, or the scale is not positive");
  const Source source = source_of(w.dtype());
  const int64_t width = dtype_bytes(w.dtype());
  auto* const to = codes.data<uint8_t>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().quantize_fp8(w.raw() + begin * width, source, end - begin, scale, quotient == Fp8Quotient::kBf16, to + begin);
  });
}

void quantize_nvfp4(const Tensor& w, float scale_2, Tensor& packed, Tensor& block_scales) {
  require_blocks(w, packed, block_scales);
  require(scale_2 > 0, "quantize_nvfp4: scale_2 is not positive");
  const Source source = source_of(w.dtype());
  const int64_t width = dtype_bytes(w.dtype());
  auto *const to = packed.data<uint8_t>(), *const scales = block_scales.data<uint8_t>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().quantize_nvfp4(w.raw() + begin * width, source, end - begin, scale_2, to + begin / 2, scales + begin / kBlock);
  });
}

void nvfp4_static_scales(const Tensor& block_amaxes, float global_amax, float scale_max, Tensor& block_scales) {
  require(block_scales.numel() == block_amaxes.numel() && global_amax > 0,
          "nvfp4_static_scales: shapes differ, or the amax is not positive");
  const auto* const from = block_amaxes.data<float>();
  auto* const to = block_scales.data<uint8_t>();
  parallel_ranges(block_amaxes.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float sixth = from[i] / E2M1::kMax, scale = (sixth == 0 ? 1.0f : sixth) * scale_max / (global_amax / E2M1::kMax);
      to[i] = E4M3::encode(std::clamp(scale, 0x1p-9f, E4M3::kMax));
    }
  });
}

void quantize_nvfp4_static(const Tensor& w, const Tensor& block_scales, float scale_2, Tensor& packed) {
  require_blocks(w, packed, block_scales);
  require(scale_2 > 0, "quantize_nvfp4_static: scale_2 is not positive");
  const Source source = source_of(w.dtype());
  const int64_t width = dtype_bytes(w.dtype());
  auto *const to = packed.data<uint8_t>(), *const scales = block_scales.data<uint8_t>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().quantize_nvfp4_static(w.raw() + begin * width, source, end - begin, scales + begin / kBlock, scale_2, to + begin / 2);
  });
}

void dequantize_fp8(const Tensor& codes, float scale, Tensor& w) {
  require(codes.numel() == w.numel(), "dequantize_fp8: shapes differ");
  const auto* const from = codes.data<uint8_t>();
  float* const to = w.data<float>();
  parallel_ranges(w.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().dequantize_fp8(from + begin, end - begin, scale, to + begin); });
}

void dequantize_nvfp4(const Tensor& packed, const Tensor& block_scales, float scale_2, Tensor& w) {
  require_blocks(w, packed, block_scales);
  const auto *const from = packed.data<uint8_t>(), *const scales = block_scales.data<uint8_t>();
  float* const to = w.data<float>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().dequantize_nvfp4(from + begin / 2, scales + begin / kBlock, end - begin, scale_2, to + begin);
  });
}

void fake_quantize_fp8(Tensor& x, float scale) {
  require(scale > 0, "fake_quantize_fp8: the scale is not positive");
  float* const values = x.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().fake_quantize_fp8(values + begin, end - begin, scale); });
}

void fake_quantize_nvfp4(Tensor& x, float scale_2) {
  require(x.dim(-1) % kBlock == 0 && scale_2 > 0, "fake_quantize_nvfp4: columns are no multiple of 16, or scale_2 is not positive");
  float* const values = x.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().fake_quantize_nvfp4(values + begin, end - begin, scale_2); });
}

}  // namespace ptq::kernels::cpu
