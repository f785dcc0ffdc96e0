#pragma once
// The zip container of torch.save, by its central directory: which stored entry lies where in a slice. Knows no entry's meaning beyond what
// makes it torch's. Source: APPNOTE.TXT 6.3.10 (zip64 included).

#include <cstdint>
#include <string>
#include <unordered_map>

#include "checkpoint/byte_slice.h"

namespace ptq::checkpoint {

class TorchZip {
 public:
  /// Whether the slice begins like a zip.
  static bool accepts(const ByteSlice& slice);
  /// Reads the directory. Throws a data Error naming the slice for: no end record at its end (a truncated file), several disks,
  /// encrypted or compressed entries, duplicate names, entries or a directory outside the slice, no or several data.pkl, big-endian
  /// storages, TorchScript programs.
  explicit TorchZip(const ByteSlice& slice);

  struct Place {
    int64_t offset = 0;  ///< in the slice
    int64_t bytes = 0;
  };
  /// Whether there is an entry of that name below the root: "data.pkl", "data/0".
  bool has(const std::string& name) const { return entries_.contains(root_ + name); }
  /// Where an entry's bytes lie: reads its local header. Throws a data Error for an entry that is not there or whose headers disagree.
  Place place(const ByteSlice& slice, const std::string& name) const;

 private:
  struct Entry {
    int64_t header = 0;  ///< offset of its local header
    int64_t bytes = 0;
  };
  struct Directory {
    uint64_t entries = 0, bytes = 0, offset = 0;
  };
  static Directory find_directory(const ByteSlice& slice);
  void read_directory(const ByteSlice& slice, const Directory& directory);
  void check_is_torch(const ByteSlice& slice);

  std::unordered_map<std::string, Entry> entries_;
  std::string root_;  ///< with its '/'
  int64_t directory_offset_ = 0;
};

}  // namespace ptq::checkpoint
