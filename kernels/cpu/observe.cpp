#include <algorithm>
#include <atomic>
#include <bit>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 65536;

float magnitude_to_float(uint32_t bits, Source source) {
  switch (source) {
    case Source::kF32:
      return std::bit_cast<float>(bits);
    case Source::kBF16:
      return to_float(BF16{static_cast<uint16_t>(bits)});
    case Source::kF16:
      return to_float(F16{static_cast<uint16_t>(bits)});
  }
  return 0.0f;
}
uint32_t infinity_bits(Source source) { return source == Source::kF32 ? 0x7f800000u : source == Source::kBF16 ? 0x7f80u : 0x7c00u; }

/// The slow way, for tensors that hold a NaN or Inf.
Amax amax_of_finite(const Tensor& x, Source source) {
  const int64_t rows = x.rank() <= 1 ? 1 : x.dim(0), columns = x.numel() / rows, width = dtype_bytes(x.dtype());
  std::vector<uint32_t> largest(static_cast<size_t>(rows), 0);
  std::atomic<int64_t> first{rows};
  parallel_for(rows, [&](int64_t row) {
    for (int64_t c = 0; c < columns; ++c) {
      const uint32_t bits = row_kernels().max_magnitude(x.raw() + (row * columns + c) * width, source, 1);
      if (bits < infinity_bits(source)) {
        largest[static_cast<size_t>(row)] = std::max(largest[static_cast<size_t>(row)], bits);
        continue;
      }
      for (int64_t seen = first.load(); row < seen && !first.compare_exchange_weak(seen, row);) {
      }
    }
  });
  return {magnitude_to_float(*std::max_element(largest.begin(), largest.end()), source), first.load()};
}

}  // namespace

Amax amax(const Tensor& x) {
  const Source source = source_of(x.dtype());
  const int64_t count = x.numel(), width = dtype_bytes(x.dtype());
  if (count == 0) return {};
  std::vector<uint32_t> largest(static_cast<size_t>((count + kElementsPerTask - 1) / kElementsPerTask), 0);
  parallel_ranges(count, kElementsPerTask, [&](int64_t begin, int64_t end) {
    largest[static_cast<size_t>(begin / kElementsPerTask)] = row_kernels().max_magnitude(x.raw() + begin * width, source, end - begin);
  });
  const uint32_t bits = *std::max_element(largest.begin(), largest.end());
  return bits < infinity_bits(source) ? Amax{magnitude_to_float(bits, source), -1} : amax_of_finite(x, source);
}

}  // namespace ptq::kernels::cpu
