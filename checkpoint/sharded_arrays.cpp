#include "checkpoint/sharded_arrays.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

/// Files that stay open: a checkpoint may have one for every chunk.
constexpr size_t kMostOpen = 64;
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

bool overlap(const Shard& a, const Shard& b) {
  for (size_t d = 0; d < a.begin.size(); ++d)
    if (a.begin[d] >= b.begin[d] + b.sizes[d] || b.begin[d] >= a.begin[d] + a.sizes[d]) return false;
  return true;
}

std::string box_text(const Shard& shard) { return to_string(shard.sizes) + " at " + to_string(shard.begin); }

}  // namespace

/// Memory that a read fills: the element of the array at `begin` goes to `out`.
struct ShardedArrays::Target {
  const ArrayEntry& array;
  Shape begin, strides;
  std::byte* out;
};

void ShardedArrays::add_array(ArrayEntry array, std::vector<Shard> shards) {
  std::sort(shards.begin(), shards.end(), [](const Shard& a, const Shard& b) { return a.begin < b.begin; });
  int64_t elements = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const Shard& shard = shards[i];
    bool inside = shard.begin.size() == array.shape.size() && shard.sizes.size() == array.shape.size();
    for (size_t d = 0; inside && d < array.shape.size(); ++d)
      inside = shard.begin[d] >= 0 && shard.sizes[d] >= 0 && shard.begin[d] <= array.shape[d] - shard.sizes[d];
    if (!inside)
      throw data_error("a shard " + box_text(shard) + " lies outside of array " + quoted_name(array.name) + " " + to_string(array.shape),
                       shard.file, "shards must be of the same checkpoint");
    elements += element_count(shard.sizes);
    for (size_t j = i + 1; j < shards.size() && !array.shape.empty() && shards[j].begin[0] < shard.begin[0] + shard.sizes[0]; ++j)
      if (overlap(shard, shards[j]))
        throw data_error("two shards of array " + quoted_name(array.name) + " overlap: " + box_text(shard) + " and " + box_text(shards[j]),
                         shards[j].file, "shards must be of the same checkpoint");
  }
  if (elements != element_count(array.shape))
    throw data_error("array " + quoted_name(array.name) + " " + to_string(array.shape) + " has shards for " + std::to_string(elements) +
                         " of its " + std::to_string(element_count(array.shape)) + " elements",
                     path_, "copy the checkpoint again, with the files of all ranks");
  const std::string name = array.name;
  if (!arrays_.emplace(name, std::move(array)).second) throw data_error("array " + quoted_name(name) + " is there twice", path_);
  shards_[name] = std::move(shards);
}

void ShardedArrays::read_box(const ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const {
  const auto found = shards_.find(array.name);
  require(found != shards_.end() && begin.size() == array.shape.size() && sizes.size() == begin.size(), "a box of another store");
  for (size_t d = 0; d < begin.size(); ++d)
    require(begin[d] >= 0 && sizes[d] >= 0 && begin[d] + sizes[d] <= array.shape[d], "a box outside its array");
  if (element_count(sizes) == 0) return;
  const Target target{array, begin, row_major(sizes), out};
  for (const Shard& shard : found->second) {
    if (!begin.empty() && shard.begin[0] >= begin[0] + sizes[0]) break;
    Shape from = begin, part = sizes;
    bool is_empty = false;
    for (size_t d = 0; d < begin.size(); ++d) {
      from[d] = std::max(begin[d], shard.begin[d]);
      part[d] = std::min(begin[d] + sizes[d], shard.begin[d] + shard.sizes[d]) - from[d];
      is_empty = is_empty || part[d] <= 0;
    }
    if (!is_empty) read_part(shard, from, part, target);
  }
}

/// Reads one box of one shard: the bytes from its first element to its last in one piece, or slice by slice along the dimension of the
/// widest stride where most of those bytes belong to others.
void ShardedArrays::read_part(const Shard& shard, const Shape& begin, const Shape& sizes, const Target& target) const {
  const int64_t width = dtype_bytes(target.array.dtype);
  int64_t first = 0, span = 1, to = 0;
  size_t widest = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    first += (begin[d] - shard.begin[d]) * shard.strides[d];
    span += (sizes[d] - 1) * shard.strides[d];
    to += (begin[d] - target.begin[d]) * target.strides[d];
    if (sizes[d] > 1 && (sizes[widest] == 1 || shard.strides[d] > shard.strides[widest])) widest = d;
  }
  const int64_t wanted = element_count(sizes);
  if (span > kMostWaste * wanted) {
    Shape slice_begin = begin, slice = sizes;
    slice[widest] = 1;
    for (int64_t i = 0; i < sizes[widest]; ++i, ++slice_begin[widest]) read_part(shard, slice_begin, slice, target);
    return;
  }
  const bool is_run = run_dimensions(sizes, shard.strides, target.strides) == sizes.size();
  std::vector<std::byte> buffer(is_run ? 0 : static_cast<size_t>(span * width));
  std::byte* const into = is_run ? target.out + to * width : buffer.data();
  if (open(shard.file)->read(shard.offset + first * width, into, span * width) != span * width)
    throw data_error("the file ends inside array " + quoted_name(target.array.name), shard.file, "copy the checkpoint again, completely");
  if (!is_run) copy_box(buffer.data(), shard.strides, target.out + to * width, target.strides, sizes, width);
  bytes_read_ += wanted * width;
}

std::shared_ptr<const WeightFile> ShardedArrays::open(const std::string& file) const {
  const std::lock_guard lock(mutex_);
  const auto found = open_.find(file);
  if (found != open_.end()) return found->second;
  if (open_.size() >= kMostOpen) open_.clear();  // those in use stay open until their readers are done
  return open_[file] = std::make_shared<const WeightFile>(file);
}

}  // namespace ptq::checkpoint
