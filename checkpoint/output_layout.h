#pragma once
// Where every tensor of the output will lie, decided before any is computed: shard file, byte offset. Pure arithmetic, the same on every
// rank. The writer then puts byte ranges in place from any rank in any order.

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/safetensors.h"

namespace ptq::checkpoint {

struct ShardFile {
  std::string name;    ///< model.safetensors or model-00001-of-00003.safetensors
  std::string header;  ///< its first bytes
  int64_t bytes = 0;   ///< whole file
  std::vector<OutputTensor> tensors;
};

struct TensorPlace {
  int shard = 0;
  int64_t offset = 0;  ///< absolute in the shard file
  int64_t bytes = 0;
};

class OutputLayout {
 public:
  /// Cuts `tensors` (in model order) into shards of at most max_shard_size tensor bytes, a tensor never split; inside a shard tensors are
  /// sorted by element width descending, then name. Names are unique. Tensor bytes never depend on max_shard_size.
  static OutputLayout plan(std::vector<OutputTensor> tensors, int64_t max_shard_size);

  const std::vector<ShardFile>& shards() const { return shards_; }
  /// Throws a bug for a name that is not in the layout.
  const TensorPlace& place(const std::string& name) const;
  const std::map<std::string, TensorPlace>& places() const { return places_; }
  int64_t tensor_bytes() const { return tensor_bytes_; }
  /// model.safetensors.index.json's text; empty for a single shard.
  std::string index_json() const;

 private:
  std::vector<ShardFile> shards_;
  std::map<std::string, TensorPlace> places_;
  int64_t tensor_bytes_ = 0;
};

/// Byte ranges into preallocated shard files. Keeps a pointer to the layout, which must outlive it. write() may be called from the writer
/// thread, by one thread at a time; files are opened when a rank first writes to them.
class ShardWriter {
 public:
  /// One rank: makes the files in `folder` at their full size (fallocate: a full disk is met now) with their headers in place.
  static void create(const std::string& folder, const OutputLayout& layout);
  /// Every rank, after create.
  static ShardWriter open(const std::string& folder, const OutputLayout& layout);

  /// Writes `bytes` bytes at `offset` inside tensor `name`. Throws a system Error with the errno's words.
  void write(const std::string& name, int64_t offset, const void* data, int64_t bytes);
  /// fsyncs every file this rank wrote to.
  void sync();
  /// By this rank, headers not counted. May be asked from another thread than the one that writes.
  int64_t bytes_written() const { return std::atomic_ref<int64_t>(bytes_written_).load(std::memory_order_relaxed); }

 private:
  std::string folder_;
  const OutputLayout* layout_ = nullptr;
  std::vector<Fd> files_;
  std::vector<bool> dirty_;
  mutable int64_t bytes_written_ = 0;  // reached through atomic_ref only: an atomic member could not be moved
};

}  // namespace ptq::checkpoint
