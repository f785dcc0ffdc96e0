#pragma once
// Which layers a sweep computes together: pure arithmetic, the same on every rank.

#include <cstdint>
#include <vector>

namespace ptq::runner {

/// Consecutive layers that are in memory at the same time, over all pipeline stages.
struct Window {
  std::vector<int64_t> boundaries;  ///< P+1 layer indices: stage p computes [boundaries[p], boundaries[p+1])
};

/// Cuts layers of these bytes into windows. No stage gets more bytes of a window than `depth` times the largest layer's; within that a
/// window is as long as it can be, so that small layers come in runs and no stage waits for a large one. depth 0: one layer a stage, for
/// the least memory. Every stage has a layer of every window but, perhaps, the last.
std::vector<Window> cut_windows(const std::vector<int64_t>& bytes, int64_t stages, int64_t depth);

}  // namespace ptq::runner
