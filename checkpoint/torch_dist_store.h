#pragma once
// PyTorch's distributed checkpoints as an array store: plain DCP and Megatron-core's torch_dist, in a folder or in an archive. `.metadata`
// is read on opening, shards by position afterwards, from any thread; a shard's own header is looked at when it is first needed.

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checkpoint/array_store.h"
#include "checkpoint/byte_slice.h"
#include "checkpoint/chunk_grid.h"
#include "checkpoint/file_set.h"
#include "checkpoint/open_files.h"
#include "checkpoint/torch_dist_metadata.h"
#include "checkpoint/torch_pickle.h"

namespace ptq::checkpoint {

class TorchDistStore : public ArrayStore {
 public:
  static constexpr const char* kMetadata = ".metadata";
  /// Whether there is a `.metadata`.
  static bool accepts(const FileSet& files) { return files.contains(kMetadata); }
  /// `path` is the folder or archive that holds the files. Throws a data Error for a `.metadata` that cannot be used (see
  /// torch_dist_metadata.h), chunks that do not tile their array exactly, and files that are missing or too short, with the arrays that
  /// need them.
  static std::unique_ptr<TorchDistStore> open(const FileSet& files, const std::string& path);

  void read_box(const ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const override;
  std::vector<std::string> files() const override;
  /// Where an array begins: the file of its first chunk, as files() calls it, and the chunk's place in it; those of .metadata for an array
  /// without elements.
  std::pair<std::string, int64_t> place(const ArrayEntry& array) const;

 private:
  /// A file that .metadata speaks of.
  struct Part {
    std::string name;    ///< as files() calls it
    std::string where;   ///< for messages
    int64_t offset = 0;  ///< where its bytes begin in the file of that name
    int64_t bytes = 0;
  };
  struct Stored {
    std::vector<TorchDistChunk> chunks;
    ChunkGrid grid;
  };
  /// A chunk decoded into memory.
  struct Decoded {
    const TorchDistChunk* chunk = nullptr;
    std::shared_ptr<const std::string> bytes;
  };

  explicit TorchDistStore(const std::string& path) : open_(path) { path_ = path; }
  Part part(const FileSlice& file, const std::string& name) const;
  void find_parts(const FileSet& files, const std::vector<std::string>& names);
  const Stored& stored(const ArrayEntry& array) const;
  ByteSlice slice(const TorchDistChunk& chunk) const;
  TorchTensor shard(const ArrayEntry& array, const TorchDistChunk& chunk, const ByteSlice& slice) const;
  int64_t place_in_file(const ArrayEntry& array, const TorchDistChunk& chunk) const;
  std::shared_ptr<const std::string> decoded(const ArrayEntry& array, const TorchDistChunk& chunk) const;

  std::map<std::string, Stored> stored_;
  Part metadata_;
  std::vector<Part> parts_;  ///< in the order of TorchDistMetadata::files
  mutable OpenFiles open_;
  mutable std::mutex mutex_;  ///< guards the two below
  /// Where the row-major bytes of a chunk begin in its slice, once its header was looked at; -1 where it has to be decoded.
  mutable std::unordered_map<const TorchDistChunk*, int64_t> places_;
  mutable std::map<std::thread::id, Decoded> decoded_;  ///< the last one of each thread: boxes come in the order of rows
};

}  // namespace ptq::checkpoint
