#include "checkpoint/chunk_grid.h"

#include <algorithm>
#include <limits>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr uint32_t kNobody = std::numeric_limits<uint32_t>::max();
/// Cells a chunk may have on average, beyond a number that costs nothing.
constexpr int64_t kCellsPerChunk = 64, kFreeCells = 65536;

/// Calls visit(cell) for every cell of a box of cells, row-major.
template <class Visit>
void for_each_cell(const std::vector<std::pair<int64_t, int64_t>>& ranges, const std::vector<Shape>& borders, const Visit& visit) {
  for (const auto& [first, last] : ranges)
    if (first >= last) return;
  Shape index;
  for (const auto& range : ranges) index.push_back(range.first);
  for (;;) {
    int64_t cell = 0;
    for (size_t d = 0; d < index.size(); ++d) cell = cell * (static_cast<int64_t>(borders[d].size()) - 1) + index[d];
    visit(static_cast<size_t>(cell));
    size_t d = index.size();
    while (d > 0 && ++index[d - 1] == ranges[d - 1].second) {
      index[d - 1] = ranges[d - 1].first;
      --d;
    }
    if (d == 0) return;
  }
}
}  // namespace

ChunkGrid::ChunkGrid(const Shape& shape, const std::vector<Box>& chunks, const std::string& what, const std::string& where) {
  const auto fail = [&](const std::string& why) {
    return data_error("the chunks of " + quoted_name(what) + " " + why, where, "copy the checkpoint again, completely");
  };
  borders_.assign(shape.size(), {});
  for (size_t d = 0; d < shape.size(); ++d) borders_[d] = {0, shape[d]};
  for (const Box& chunk : chunks) {
    if (!chunk.is_inside(shape)) throw fail("reach outside of it");
    if (element_count(chunk.sizes) == 0) continue;
    for (size_t d = 0; d < shape.size(); ++d) {
      borders_[d].push_back(chunk.begin[d]);
      borders_[d].push_back(chunk.begin[d] + chunk.sizes[d]);
    }
  }
  const int64_t most = kCellsPerChunk * static_cast<int64_t>(chunks.size()) + kFreeCells;
  int64_t count = 1;
  for (Shape& border : borders_) {
    std::sort(border.begin(), border.end());
    border.erase(std::unique(border.begin(), border.end()), border.end());
    const int64_t along = static_cast<int64_t>(border.size()) - 1;
    if (along > 0 && count > most / along) throw fail("are not cut along a grid");
    count *= along;
  }
  owners_.assign(static_cast<size_t>(count), kNobody);
  for (size_t i = 0; i < chunks.size(); ++i) {
    std::vector<std::pair<int64_t, int64_t>> ranges;
    for (size_t d = 0; d < shape.size(); ++d) ranges.push_back(cells(d, chunks[i].begin[d], chunks[i].sizes[d]));
    for_each_cell(ranges, borders_, [&](size_t cell) {
      if (owners_[cell] != kNobody) throw fail("overlap");
      owners_[cell] = static_cast<uint32_t>(i);
    });
  }
  if (std::find(owners_.begin(), owners_.end(), kNobody) != owners_.end()) throw fail("leave a hole in it");
}

std::pair<int64_t, int64_t> ChunkGrid::cells(size_t d, int64_t begin, int64_t size) const {
  const Shape& border = borders_[d];
  const auto first = std::upper_bound(border.begin(), border.end(), begin) - border.begin() - 1;
  const auto last = std::lower_bound(border.begin(), border.end(), begin + size) - border.begin();
  return {first, size == 0 ? first : last};
}

std::vector<uint32_t> ChunkGrid::touched(const Box& box) const {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (size_t d = 0; d < borders_.size(); ++d) ranges.push_back(cells(d, box.begin[d], box.sizes[d]));
  std::vector<uint32_t> found;
  for_each_cell(ranges, borders_, [&](size_t cell) { found.push_back(owners_[cell]); });
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace ptq::checkpoint
