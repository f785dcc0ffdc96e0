#pragma once
// Arrays put together from shards: each a box of the global array whose elements lie in a file with any strides, as ranks of a training
// run wrote it. Base of the stores that know where every shard is once they are open.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/array_store.h"
#include "checkpoint/box.h"
#include "checkpoint/chunk_grid.h"
#include "checkpoint/open_files.h"

namespace ptq::checkpoint {

struct Shard {
  Box box;             ///< of the global array
  Shape strides;       ///< elements from one index to the next, by dimension; none negative
  std::string file;    ///< path
  int64_t offset = 0;  ///< of its first element in the file, in bytes
};

class ShardedArrays : public ArrayStore {
 public:
  void read_box(const ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const override;
  std::vector<std::string> files() const override;

 protected:
  /// `path`: the folder or the archive that all shards' files are in, or are.
  explicit ShardedArrays(const std::string& path) : open_(path) { path_ = path; }
  /// Throws a data Error unless the shards tile the array: none outside it, no two overlapping, nothing left out.
  void add_array(ArrayEntry array, std::vector<Shard> shards);

 private:
  struct Target;
  struct Stored {
    std::vector<Shard> shards;
    ChunkGrid grid;
  };
  void read_part(const Shard& shard, const Box& box, const Target& target) const;

  std::map<std::string, Stored> stored_;
  mutable OpenFiles open_;
};

}  // namespace ptq::checkpoint
