#include "checkpoint/box.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr int64_t kPieceBytes = int64_t{4} << 20;
/// Units of this many bytes are read one by one, straight to where they belong.
constexpr int64_t kDirectBytes = int64_t{256} << 10;

/// Offset in bytes of an index in the row-major memory of a box.
int64_t place_in(const Box& box, const Shape& index, int64_t item_bytes) {
  int64_t at = 0;
  for (size_t d = 0; d < index.size(); ++d) at = at * box.sizes[d] + (index[d] - box.begin[d]);
  return at * item_bytes;
}

/// Moves on to the next index of the first `axes` dimensions of a box; false behind the last.
bool advance(const Box& box, size_t axes, Shape& index) {
  for (size_t d = axes; d-- > 0;) {
    if (++index[d] < box.begin[d] + box.sizes[d]) return true;
    index[d] = box.begin[d];
  }
  return false;
}

/// How many leading dimensions have to be walked so that what remains of `part` is contiguous in `whole`.
size_t walked_axes(const Box& part, const Box& whole) {
  size_t axes = part.sizes.size();
  while (axes > 0 && part.sizes[axes - 1] == whole.sizes[axes - 1]) --axes;
  return axes > 0 ? axes - 1 : 0;
}

int64_t elements_from(const Box& box, size_t axis) {
  int64_t elements = 1;
  for (; axis < box.sizes.size(); ++axis) elements *= box.sizes[axis];
  return elements;
}
}  // namespace

bool Box::is_inside(const Shape& shape) const {
  if (begin.size() != shape.size() || sizes.size() != shape.size()) return false;
  for (size_t d = 0; d < shape.size(); ++d)
    if (begin[d] < 0 || sizes[d] < 0 || begin[d] > shape[d] || sizes[d] > shape[d] - begin[d]) return false;
  return true;
}

Box overlap(const Box& a, const Box& b) {
  Box shared = a;
  for (size_t d = 0; d < a.begin.size(); ++d) {
    shared.begin[d] = std::max(a.begin[d], b.begin[d]);
    shared.sizes[d] = std::max<int64_t>(0, std::min(a.begin[d] + a.sizes[d], b.begin[d] + b.sizes[d]) - shared.begin[d]);
  }
  return shared;
}

int64_t read_overlap(const Box& chunk, const Box& wanted, int64_t item_bytes, const ReadChunk& read, std::byte* out) {
  const Box part = overlap(chunk, wanted);
  if (element_count(part.sizes) == 0) return 0;
  // A run is contiguous in the chunk; it consists of units that are contiguous in `out` too.
  const size_t run_axes = walked_axes(part, chunk), unit_axes = std::max(run_axes, walked_axes(part, wanted));
  const int64_t unit = elements_from(part, unit_axes) * item_bytes, run = elements_from(part, run_axes) * item_bytes;
  Shape index = part.begin;
  if (unit == run || unit >= kDirectBytes) {
    do {
      read(place_in(chunk, index, item_bytes), out + place_in(wanted, index, item_bytes), unit);
    } while (advance(part, unit_axes, index));
    return element_count(part.sizes) * item_bytes;
  }
  std::vector<std::byte> buffer;
  do {
    const int64_t from = place_in(chunk, index, item_bytes);
    Shape inner = index;
    for (int64_t done = 0; done < run;) {
      const int64_t piece = std::min(run - done, kPieceBytes / unit * unit);
      buffer.resize(static_cast<size_t>(piece));
      read(from + done, buffer.data(), piece);
      for (int64_t at = 0; at < piece; at += unit) {
        std::memcpy(out + place_in(wanted, inner, item_bytes), buffer.data() + at, static_cast<size_t>(unit));
        advance(part, unit_axes, inner);
      }
      done += piece;
    }
  } while (advance(part, run_axes, index));
  return element_count(part.sizes) * item_bytes;
}

}  // namespace ptq::checkpoint
