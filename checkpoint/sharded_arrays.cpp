#include "checkpoint/sharded_arrays.h"

#include <cstring>
#include <set>
#include <utility>

#include "checkpoint/file_set.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

/// A read may fetch this many times what is wanted of it before it is cut into smaller ones.
constexpr int64_t kMostWaste = 2;

Shape row_major(const Shape& sizes) {
  Shape strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  return strides;
}

/// How many dimensions, counted from the last, lie in one run with both strides.
size_t run_dimensions(const Shape& sizes, const Shape& from, const Shape& to) {
  size_t run = 0;
  int64_t length = 1;
  for (size_t d = sizes.size(); d-- > 0; ++run) {
    if (sizes[d] != 1 && (from[d] != length || to[d] != length)) break;
    length *= sizes[d];
  }
  return run;
}

/// Copies a box between two memories; strides in elements of `width` bytes.
void copy_box(const std::byte* from, const Shape& from_strides, std::byte* to, const Shape& to_strides, const Shape& sizes, int64_t width) {
  const size_t outer = sizes.size() - run_dimensions(sizes, from_strides, to_strides);
  int64_t run = width;
  for (size_t d = outer; d < sizes.size(); ++d) run *= sizes[d];
  Shape index(outer, 0);
  for (;;) {
    int64_t source = 0, target = 0;
    for (size_t d = 0; d < outer; ++d) {
      source += index[d] * from_strides[d];
      target += index[d] * to_strides[d];
    }
    std::memcpy(to + target * width, from + source * width, static_cast<size_t>(run));
    size_t d = outer;
    while (d > 0 && ++index[d - 1] == sizes[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

}  // namespace

/// Memory that a read fills: the element of the array at `begin` goes to `out`.
struct ShardedArrays::Target {
  const ArrayEntry& array;
  Shape begin, strides;
  std::byte* out;
};

void ShardedArrays::add_array(ArrayEntry array, std::vector<Shard> shards) {
  std::vector<Box> boxes;
  for (const Shard& shard : shards) boxes.push_back(shard.box);
  const std::string name = array.name;
  ChunkGrid grid(array.shape, boxes, name, path_);
  if (!arrays_.emplace(name, std::move(array)).second) throw data_error("array " + quoted_name(name) + " is there twice", path_);
  stored_[name] = {std::move(shards), std::move(grid)};
}

std::vector<std::string> ShardedArrays::files() const {
  std::set<std::string> names;
  for (const auto& [name, stored] : stored_)
    for (const Shard& shard : stored.shards) names.insert(name_below(path_, shard.file));
  return {names.begin(), names.end()};
}

void ShardedArrays::read_box(const ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const {
  const auto found = stored_.find(array.name);
  const Box wanted{begin, sizes};
  require(found != stored_.end() && wanted.is_inside(array.shape), "a box of another store, or outside of its array");
  if (element_count(sizes) == 0) return;
  const Target target{array, begin, row_major(sizes), out};
  for (const uint32_t index : found->second.grid.touched(wanted)) {
    const Shard& shard = found->second.shards[index];
    read_part(shard, overlap(shard.box, wanted), target);
  }
}

/// Reads one box of one shard: the bytes from its first element to its last in one piece, or slice by slice along the dimension of the
/// widest stride where most of those bytes belong to others.
void ShardedArrays::read_part(const Shard& shard, const Box& box, const Target& target) const {
  const auto& [begin, sizes] = box;
  const int64_t width = dtype_bytes(target.array.dtype);
  int64_t first = 0, span = 1, to = 0;
  size_t widest = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    first += (begin[d] - shard.box.begin[d]) * shard.strides[d];
    span += (sizes[d] - 1) * shard.strides[d];
    to += (begin[d] - target.begin[d]) * target.strides[d];
    if (sizes[d] > 1 && (sizes[widest] == 1 || shard.strides[d] > shard.strides[widest])) widest = d;
  }
  const int64_t wanted = element_count(sizes);
  if (span > kMostWaste * wanted) {
    Box slice = box;
    slice.sizes[widest] = 1;
    for (int64_t i = 0; i < sizes[widest]; ++i, ++slice.begin[widest]) read_part(shard, slice, target);
    return;
  }
  const bool is_run = run_dimensions(sizes, shard.strides, target.strides) == sizes.size();
  std::vector<std::byte> buffer(is_run ? 0 : static_cast<size_t>(span * width));
  std::byte* const into = is_run ? target.out + to * width : buffer.data();
  if (open_.open(name_below(path_, shard.file))->read(shard.offset + first * width, into, span * width) != span * width)
    throw data_error("the file ends inside array " + quoted_name(target.array.name), shard.file, "copy the checkpoint again, completely");
  if (!is_run) copy_box(buffer.data(), shard.strides, target.out + to * width, target.strides, sizes, width);
  bytes_read_ += wanted * width;
}

}  // namespace ptq::checkpoint
