// Statistics of columns and of rows.

#include <algorithm>
#include <bit>
#include <mutex>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_search_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {
constexpr int64_t kColumnsPerTask = 256;  // their sums stay in the first-level cache while rows stream by
constexpr int64_t kElementsPerTask = 32768;
}  // namespace

void column_amax(const Tensor& x, Tensor& amaxes) {
  require(x.rank() == 2 && amaxes.numel() == x.dim(1), "column_amax: amaxes are not [C] of x [T, C]");
  const Source source = source_of(x.dtype());
  auto* const to = amaxes.data<float>();
  parallel_ranges(x.dim(1), kColumnsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().column_maxima(x.raw() + begin * dtype_bytes(x.dtype()), source, x.dim(1), x.dim(0), end - begin, to + begin);
  });
}

void column_sums(const Tensor& x, bool absolute, std::span<int64_t> sums) {
  require(x.rank() == 2 && static_cast<int64_t>(sums.size()) == x.dim(1), "column_sums: sums are not [C] of x [T, C]");
  const Source source = source_of(x.dtype());
  parallel_ranges(x.dim(1), kColumnsPerTask, [&](int64_t begin, int64_t end) {
    row_kernels().column_sums(x.raw() + begin * dtype_bytes(x.dtype()), source, x.dim(1), x.dim(0), end - begin, absolute,
                              sums.data() + begin);
  });
}

void count_magnitudes(const Tensor& x, std::span<int64_t> counts) {
  require(counts.size() == kMagnitudeBins, "count_magnitudes: one count for every bin");
  const Source source = source_of(x.dtype());
  const int64_t width = dtype_bytes(x.dtype());
  std::mutex adding;
  parallel_ranges(x.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(end - begin));
    row_kernels().widen(x.raw() + begin * width, source, end - begin, values.data());
    std::vector<int64_t> mine(kMagnitudeBins, 0);
    // Exponent and the first four bits of the fraction are the bin.
    constexpr int32_t kFirst = (127 - 32) * 16;
    for (const float value : values) {
      const auto bits = static_cast<int32_t>((std::bit_cast<uint32_t>(value) & 0x7fffffffu) >> 19);
      mine[static_cast<size_t>(std::clamp(bits - kFirst + 1, 0, static_cast<int32_t>(kMagnitudeBins) - 1))] += 1;
    }
    const std::lock_guard lock(adding);
    for (size_t b = 0; b < mine.size(); ++b) counts[b] += mine[b];
  });
}

void row_dots(const Tensor& a, const Tensor& b, std::span<double> dots) {
  require(a.rank() == 2 && a.shape() == b.shape() && static_cast<int64_t>(dots.size()) == a.dim(0), "row_dots: shapes differ");
  const float *const left = a.data<float>(), *const right = b.data<float>();
  const int64_t columns = a.dim(1);
  parallel_ranges(a.dim(0), std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, columns)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      dots[static_cast<size_t>(row)] = row_kernels().dot(left + row * columns, right + row * columns, columns);
  });
}

}  // namespace ptq::kernels::cpu
