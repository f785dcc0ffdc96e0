#pragma once
// Boxes of row-major arrays, and the part of one that lies in a chunk read out of that chunk.

#include <cstdint>
#include <functional>

#include "kernels/core/tensor.h"

namespace ptq::checkpoint {

/// Indices begin[d] .. begin[d] + sizes[d] of every dimension of an array.
struct Box {
  Shape begin, sizes;

  /// Whether it lies inside an array of that shape.
  bool is_inside(const Shape& shape) const;
};

/// The box both share; its sizes hold a 0 where they share nothing.
Box overlap(const Box& a, const Box& b);

/// Reads `bytes` bytes at `offset` of a chunk's data into `out`.
using ReadChunk = std::function<void(int64_t offset, std::byte* out, int64_t bytes)>;

/// Fills the part of `wanted` that lies in `chunk`: `out` is the row-major memory of `wanted`, `read` reads the row-major data of `chunk`.
/// What is contiguous in the chunk is read at once, in pieces of up to 4 MiB where it is not contiguous in `out`.
/// Returns the bytes read.
int64_t read_overlap(const Box& chunk, const Box& wanted, int64_t item_bytes, const ReadChunk& read, std::byte* out);

}  // namespace ptq::checkpoint
