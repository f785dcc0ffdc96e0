#pragma once
// Chunks that tile an array exactly, and which of them a box touches. Chunks of a checkpoint come from splitting dimensions, so that they
// lie on a grid: a cell between neighbouring chunk borders belongs to one chunk.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/box.h"

namespace ptq::checkpoint {

class ChunkGrid {
 public:
  ChunkGrid() = default;
  /// Chunks without elements are left out. Throws a data Error, with `what` (an array's name) and `where` (its file), for chunks that reach
  /// outside the array, overlap, leave a hole, or are cut so irregularly that their grid has far more cells than there are chunks.
  ChunkGrid(const Shape& shape, const std::vector<Box>& chunks, const std::string& what, const std::string& where);

  /// Indices of the chunks that share elements with a box inside the array, ascending.
  std::vector<uint32_t> touched(const Box& box) const;

 private:
  /// Cells [first, last) of dimension d that [begin, begin + size) touches.
  std::pair<int64_t, int64_t> cells(size_t d, int64_t begin, int64_t size) const;

  std::vector<Shape> borders_;    ///< of each dimension, ascending, from 0 to its length
  std::vector<uint32_t> owners_;  ///< chunk of each cell, row-major
};

}  // namespace ptq::checkpoint
