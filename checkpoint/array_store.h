#pragma once
// What a training checkpoint holds once its shards are put together: named row-major arrays of their global shapes, under the names the
// training framework gave them. Sharded formats (torch_dist, plain DCP, zarr, mp_rank files) each are one; what maps names and layouts to
// Hugging Face's is a Reader on top. Never converts a number.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace ptq::checkpoint {

struct ArrayEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

class ArrayStore {
 public:
  virtual ~ArrayStore() = default;

  /// By name: every array of numbers, those of optimizers not among them.
  const std::map<std::string, ArrayEntry>& arrays() const { return arrays_; }
  /// Names of what is stored beside those arrays and is not offered: optimizers' states, objects that training keeps.
  const std::vector<std::string>& left_out() const { return left_out_; }
  /// The folder or file it was opened from.
  const std::string& path() const { return path_; }

  /// Reads the box begin[d] .. begin[d] + sizes[d] of every dimension into `out`, row-major, and nothing else of the files than the byte
  /// ranges that hold it. Thread-safe. Throws a data Error naming array and file where a shard is missing, too short, or not decodable.
  virtual void read_box(const ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const = 0;
  /// The files that hold its bytes, relative to path() ("" where path() is the file), sorted: for fingerprints.
  virtual std::vector<std::string> files() const = 0;
  /// Weight bytes read so far by this process.
  int64_t bytes_read() const { return bytes_read_.load(); }

 protected:
  std::string path_;
  std::map<std::string, ArrayEntry> arrays_;
  std::vector<std::string> left_out_;
  mutable std::atomic<int64_t> bytes_read_{0};
};

}  // namespace ptq::checkpoint
