#pragma once
// Arrays as Megatron-core up to 0.9 and NeMo 1 wrote them with zarr v2: a folder for each array with .zarray (shape, chunks, dtype) and one
// file a chunk, named by its place in the grid. Nothing is compressed.

#include <memory>
#include <string>

#include "checkpoint/file_set.h"
#include "checkpoint/sharded_arrays.h"

namespace ptq::checkpoint {

class ZarrStore : public ShardedArrays {
 public:
  /// Whether any of the files describes a zarr array.
  static bool accepts(const FileSet& files);
  /// `path` is the folder or archive that holds the files. Throws a data Error naming the array for: a .zarray that is none or of another
  /// version, a compressor, filters, an order other than C, a dtype this program has no use for, chunks that are missing or too short.
  static std::unique_ptr<ArrayStore> open(const FileSet& files, const std::string& path);

 private:
  explicit ZarrStore(const std::string& path) : ShardedArrays(path) {}
  void add(const std::string& name, const FileSlice& description, const FileSet& chunks);
};

}  // namespace ptq::checkpoint
