// Tokens to their experts and back.

#include <algorithm>
#include <cstring>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, width)); }

void require_rows(const std::vector<int64_t>& rows, int64_t extent) {
  for (const int64_t row : rows) require(0 <= row && row < extent, "rows of experts: a row outside x");
}

}  // namespace

void gather_rows(const Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& scales, Tensor& out) {
  require(x.rank() == 2 && out.rank() == 2 && out.dim(1) == x.dim(1), "gather_rows: widths differ");
  require(out.dim(0) == static_cast<int64_t>(rows.size()), "gather_rows: out has not one row per row asked for");
  require(scales.empty() || scales.size() == rows.size(), "gather_rows: not one scale per row");
  require(x.dtype() == out.dtype() && (x.dtype() == DType::kBF16 || x.dtype() == DType::kF32),
          "gather_rows: x and out are not both bf16 or f32");
  require_rows(rows, x.dim(0));
  const Source source = source_of(x.dtype());
  const int64_t width = x.dim(1), bytes = width * dtype_bytes(x.dtype());
  parallel_ranges(out.dim(0), rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::byte* const from = x.raw() + rows[static_cast<size_t>(i)] * bytes;
      if (scales.empty())
        std::memcpy(out.raw() + i * bytes, from, static_cast<size_t>(bytes));
      else
        row_kernels().scale(from, source, width, scales[static_cast<size_t>(i)], out.raw() + i * bytes);
    }
  });
}

void add_rows(Tensor& x, const std::vector<int64_t>& rows, const std::vector<float>& weights, const Tensor& y) {
  require(x.rank() == 2 && y.rank() == 2 && y.dim(1) == x.dim(1), "add_rows: widths differ");
  require(y.dim(0) == static_cast<int64_t>(rows.size()) && weights.size() == rows.size(), "add_rows: not one row and weight per row of y");
  require_rows(rows, x.dim(0));
  const int64_t width = x.dim(1);
  float* const to = x.data<float>();
  const float* const from = y.data<float>();
  parallel_ranges(y.dim(0), rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      row_kernels().add_scaled(to + rows[static_cast<size_t>(i)] * width, from + i * width, width, weights[static_cast<size_t>(i)]);
  });
}

}  // namespace ptq::kernels::cpu
