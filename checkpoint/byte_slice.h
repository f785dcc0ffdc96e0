#pragma once
// A run of bytes that is read by position: part of a file, or memory that was decoded from one. What is stored inside other files (a zip
// inside a shard, a shard inside an archive) is read through these without copies of it being made. Any thread may read.

#include <cstdint>
#include <memory>
#include <string>

#include "checkpoint/file_set.h"
#include "checkpoint/weight_file.h"

namespace ptq::checkpoint {

class ByteSlice {
 public:
  /// Bytes [offset, offset + bytes) of a file; `where` is for messages. Throws a data Error where the file does not hold them.
  ByteSlice(std::shared_ptr<const WeightFile> file, std::string where, int64_t offset, int64_t bytes);
  /// A whole file.
  static ByteSlice of_file(const std::string& path);
  /// A file or a part of one.
  static ByteSlice of_slice(const FileSlice& slice);
  /// Memory.
  ByteSlice(std::shared_ptr<const std::string> memory, std::string where);

  int64_t bytes() const { return bytes_; }
  const std::string& where() const { return where_; }
  /// Where it begins in its file; 0 for memory.
  int64_t file_offset() const { return offset_; }

  /// Reads [offset, offset + bytes) of the slice. Throws a data Error where that is not inside of it, or its file became shorter.
  void read(int64_t offset, void* out, int64_t bytes) const;
  std::string text(int64_t offset, int64_t bytes) const;

 private:
  void check_inside(int64_t offset, int64_t bytes) const;

  std::shared_ptr<const WeightFile> file_;
  std::shared_ptr<const std::string> memory_;
  std::string where_;
  int64_t offset_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace ptq::checkpoint
