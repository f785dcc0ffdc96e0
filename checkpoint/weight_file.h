#pragma once
// A weight file read by position in large pieces: from the page cache where the bytes are there already, else past it (direct I/O), since
// weights are read once and a copy in the cache would cost a core and push out what others keep there. Any thread may read.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "checkpoint/file_descriptor.h"

namespace ptq::checkpoint {

class WeightFile {
 public:
  /// Opens `path`. Throws a system Error when it cannot, a data Error when it is not a regular file.
  explicit WeightFile(std::string path);
  ~WeightFile();
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  int64_t bytes() const { return bytes_; }
  /// Reads up to `bytes` bytes at `offset` into out, fewer only at the end of the file. Returns how many.
  int64_t read(int64_t offset, std::byte* out, int64_t bytes) const;

 private:
  bool is_cached(int64_t offset, int64_t bytes) const;
  /// One piece past the page cache; -1 where the file system cannot do that.
  int64_t read_direct(int64_t offset, std::byte* out, int64_t bytes) const;

  std::string path_;
  int64_t bytes_ = 0;
  Fd buffered_, direct_;
  void* pages_ = nullptr;  ///< the file mapped, never touched: mincore asks it what is in the page cache
  mutable std::atomic<bool> can_direct_{false};
};

}  // namespace ptq::checkpoint
