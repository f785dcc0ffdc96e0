#pragma once
// Arrays put together from shards: each a box of the global array whose elements lie in a file with any strides, as ranks of a training
// run wrote it. Base of the stores that know where every shard is once they are open.

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "checkpoint/array_store.h"
#include "checkpoint/weight_file.h"

namespace ptq::checkpoint {

struct Shard {
  Shape begin, sizes;  ///< the box of the global array
  Shape strides;       ///< elements from one index to the next, by dimension; none negative
  std::string file;    ///< path
  int64_t offset = 0;  ///< of its first element in the file, in bytes
};

class ShardedArrays : public ArrayStore {
 public:
  void read_box(const ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const override;

 protected:
  /// Throws a data Error unless the shards tile the array: none outside it, no two overlapping, nothing left out.
  void add_array(ArrayEntry array, std::vector<Shard> shards);

 private:
  struct Target;
  void read_part(const Shard& shard, const Shape& begin, const Shape& sizes, const Target& target) const;
  std::shared_ptr<const WeightFile> open(const std::string& file) const;

  std::map<std::string, std::vector<Shard>> shards_;  ///< by array, ordered by their beginnings
  mutable std::mutex mutex_;                          ///< guards open_
  mutable std::map<std::string, std::shared_ptr<const WeightFile>> open_;
};

}  // namespace ptq::checkpoint
