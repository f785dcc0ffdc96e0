#include "runner/embedding.h"

#include <algorithm>
#include <cstring>

#include "kernels/ops.h"

namespace ptq::runner {

void look_up_embeddings(const checkpoint::Reader& reader, const checkpoint::TensorEntry& table,
                        const std::vector<std::vector<int32_t>>& ids, DType dtype,
                        const std::function<void(int64_t, const Tensor&)>& keep) {
  const int64_t vocab = table.shape[0], width = table.shape[1];
  std::vector<int32_t> distinct;
  std::vector<bool> seen(static_cast<size_t>(vocab), false);
  for (const auto& batch : ids)
    for (const int32_t id : batch) seen[static_cast<size_t>(id)] = true;
  std::vector<int32_t> place_of(static_cast<size_t>(vocab), -1);
  for (int64_t id = 0; id < vocab; ++id)
    if (seen[static_cast<size_t>(id)]) {
      place_of[static_cast<size_t>(id)] = static_cast<int32_t>(distinct.size());
      distinct.push_back(static_cast<int32_t>(id));
    }

  // Runs of neighbouring ids become one read; a gap of up to a few rows is read over rather than sought over.
  constexpr int64_t kGap = 4;
  const Tensor rows = Tensor::empty({static_cast<int64_t>(distinct.size()), width}, table.dtype);
  const auto row_bytes = static_cast<size_t>(width * dtype_bytes(table.dtype));
  std::vector<std::byte> buffer;
  for (size_t begin = 0; begin < distinct.size();) {
    size_t end = begin + 1;
    while (end < distinct.size() && distinct[end] - distinct[end - 1] <= kGap && distinct[end] - distinct[begin] < 4096) ++end;
    const int64_t first = distinct[begin], last = distinct[end - 1] + 1;
    buffer.resize(static_cast<size_t>(last - first) * row_bytes);
    reader.read_rows(table, first, last, buffer.data());
    for (size_t i = begin; i < end; ++i)
      std::memcpy(rows.raw() + i * row_bytes, buffer.data() + static_cast<size_t>(distinct[i] - first) * row_bytes, row_bytes);
    begin = end;
  }
  if (!distinct.empty())
    if (const int64_t bad = kernels::amax(rows).non_finite_row; bad >= 0)
      throw data_error("NaN or Inf in the weights: row " + std::to_string(distinct[static_cast<size_t>(bad)]) + " of " + table.name,
                       table.file, "the checkpoint is damaged: download or convert it again");

  for (size_t m = 0; m < ids.size(); ++m) {
    const auto count = static_cast<int64_t>(ids[m].size());
    const Tensor picked = Tensor::empty({count, width}, table.dtype);
    for (size_t t = 0; t < ids[m].size(); ++t)
      std::memcpy(picked.raw() + t * row_bytes, rows.raw() + static_cast<size_t>(place_of[static_cast<size_t>(ids[m][t])]) * row_bytes,
                  row_bytes);
    if (dtype == table.dtype) {
      keep(static_cast<int64_t>(m), picked);
      continue;
    }
    Tensor wide = Tensor::empty({count, width}, DType::kF32);
    kernels::convert(picked, wide);
    if (dtype == DType::kF32) {
      keep(static_cast<int64_t>(m), wide);
      continue;
    }
    Tensor states = Tensor::empty({count, width}, dtype);
    kernels::convert(wide, states);
    keep(static_cast<int64_t>(m), states);
  }
}

}  // namespace ptq::runner
