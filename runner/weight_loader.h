#pragma once
// The loader thread: reads unit after unit of weight rows from the source, always ahead of the main thread by at most a given number of
// bytes, a unit by a few readers at once. Never calls MPI, never touches the compute pool.

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "checkpoint/reader.h"
#include "parallel/shard.h"

namespace ptq::runner {

struct RowRequest {
  const checkpoint::TensorEntry* tensor = nullptr;
  parallel::Range rows;  ///< of dimension 0
};

/// What is read together: the shares of a layer, or a piece of a tensor that is only copied.
using LoadUnit = std::vector<RowRequest>;

class WeightLoader {
 public:
  /// Starts reading `units` in order. At most one unit beyond the one taken last, or as many as fit into `ahead_bytes`, lie ready.
  WeightLoader(const checkpoint::Reader& reader, std::vector<LoadUnit> units, int64_t ahead_bytes);
  ~WeightLoader();
  WeightLoader(const WeightLoader&) = delete;

  /// The next unit's tensors, [rows, ...] each in its own dtype, in the order of its requests; waits for it. Throws what reading threw.
  std::vector<Tensor> take();
  /// Seconds take() has waited so far.
  double waited_seconds() const { return waited_seconds_; }

 private:
  void run();

  const checkpoint::Reader& reader_;
  std::vector<LoadUnit> units_;
  int64_t ahead_bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::vector<Tensor>> ready_;
  int64_t ready_bytes_ = 0;
  std::optional<Error> error_;
  bool stopping_ = false;
  double waited_seconds_ = 0;
  std::thread thread_;
};

}  // namespace ptq::runner
