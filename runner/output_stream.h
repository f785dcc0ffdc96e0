#pragma once
// The writer thread: puts finished byte ranges into the output's shard files while the main thread goes on. Never calls MPI.

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "checkpoint/output_layout.h"
#include "kernels/core/tensor.h"

namespace ptq::runner {

class OutputStream {
 public:
  /// push() waits while more than `queue_bytes` lie unwritten.
  OutputStream(checkpoint::ShardWriter writer, int64_t queue_bytes);
  ~OutputStream();
  OutputStream(const OutputStream&) = delete;

  /// Queues `data` for `offset` bytes into tensor `name`. The memory must not be changed after. Drops it when an earlier write failed.
  void push(std::string name, int64_t offset, Tensor data);
  /// What writing has thrown so far.
  std::optional<Error> error();
  /// Waits until all that was pushed is written and fsynced.
  void flush();
  /// The same, and ends the thread.
  void finish();
  int64_t bytes_written() const { return writer_.bytes_written(); }

 private:
  struct Piece {
    std::string name;
    int64_t offset;
    Tensor data;
  };
  void run();

  checkpoint::ShardWriter writer_;
  int64_t queue_bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> queue_;
  int64_t queued_bytes_ = 0;
  bool closing_ = false, done_ = false, flushing_ = false;
  std::optional<Error> error_;
  std::thread thread_;
};

}  // namespace ptq::runner
