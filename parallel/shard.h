#pragma once
// Who owns which rows: pure arithmetic, the same on every rank.

#include <cstdint>
#include <vector>

namespace ptq::parallel {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

/// Part `index` of `parts` of [0, extent), cut as evenly as possible at multiples of `multiple`; later parts may be empty.
inline Range even_share(int64_t extent, int64_t parts, int64_t index, int64_t multiple = 1) {
  const int64_t units = (extent + multiple - 1) / multiple;
  const int64_t base = units / parts, extra = units % parts;
  const int64_t first = index * base + (index < extra ? index : extra);
  const int64_t last = first + base + (index < extra ? 1 : 0);
  const int64_t begin = first * multiple, end = last * multiple;
  return {begin < extent ? begin : extent, end < extent ? end : extent};
}

/// Cuts consecutive items of the given weights (bytes) into `parts` runs whose heaviest is as light as possible; runs may be empty only
/// when there are fewer items than parts. Returns parts + 1 boundaries.
std::vector<int64_t> balanced_runs(const std::vector<int64_t>& weights, int64_t parts);

}  // namespace ptq::parallel
