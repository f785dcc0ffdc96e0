#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kBlock = 32;
constexpr int64_t kElementsPerTask = 16 * 2048;  // a multiple of the block: rows are whole blocks, so tasks may ignore where rows end

/// `codes_per_byte` is 1 for MXFP8, 2 for MXFP4.
void require_blocks(const Tensor& w, const Tensor& codes, int64_t codes_per_byte, const Tensor& scales) {
  require(w.dim(-1) % kBlock == 0, "mx format: the block of 32 does not divide the columns");
  require(codes.numel() * codes_per_byte == w.numel() && scales.numel() * kBlock == w.numel(),
          "mx format: codes or scales have a wrong shape");
}

}  // namespace

void quantize_mxfp8(const Tensor& w, Tensor& codes, Tensor& scales) {
  require_blocks(w, codes, 1, scales);
  const Source source = source_of(w.dtype());
  const int64_t width = dtype_bytes(w.dtype());
  auto *const to = codes.data<uint8_t>(), *const exponents = scales.data<uint8_t>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().quantize_mxfp8(w.raw() + begin * width, source, end - begin, to + begin, exponents + begin / kBlock);
  });
}

void quantize_mxfp4(const Tensor& w, Tensor& packed, Tensor& scales) {
  require_blocks(w, packed, 2, scales);
  const Source source = source_of(w.dtype());
  const int64_t width = dtype_bytes(w.dtype());
  auto *const to = packed.data<uint8_t>(), *const exponents = scales.data<uint8_t>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().quantize_mxfp4(w.raw() + begin * width, source, end - begin, to + begin / 2, exponents + begin / kBlock);
  });
}

void dequantize_mxfp8(const Tensor& codes, const Tensor& scales, Tensor& w) {
  require_blocks(w, codes, 1, scales);
  const auto *const from = codes.data<uint8_t>(), *const exponents = scales.data<uint8_t>();
  float* const to = w.data<float>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().dequantize_mxfp8(from + begin, exponents + begin / kBlock, end - begin, to + begin);
  });
}

void dequantize_mxfp4(const Tensor& packed, const Tensor& scales, Tensor& w) {
  require_blocks(w, packed, 2, scales);
  const auto *const from = packed.data<uint8_t>(), *const exponents = scales.data<uint8_t>();
  float* const to = w.data<float>();
  parallel_ranges(w.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().dequantize_mxfp4(from + begin / 2, exponents + begin / kBlock, end - begin, to + begin);
  });
}

void fake_quantize_mxfp8(Tensor& x) {
  require(x.dim(-1) % kBlock == 0, "fake_quantize_mxfp8: the block of 32 does not divide the columns");
  float* const values = x.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().fake_quantize_mxfp8(values + begin, end - begin); });
}

void fake_quantize_mxfp4(Tensor& x) {
  require(x.dim(-1) % kBlock == 0, "fake_quantize_mxfp4: the block of 32 does not divide the columns");
  float* const values = x.data<float>();
  parallel_ranges(x.numel(), kElementsPerTask,
                  [&](int64_t begin, int64_t end) { row_kernels().fake_quantize_mxfp4(values + begin, end - begin); });
}

}  // namespace ptq::kernels::cpu
