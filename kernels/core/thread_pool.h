#pragma once
// The process-wide pool of compute threads. Only the main thread of a rank starts work on it; loader and writer threads never do.

#include <cstdint>
#include <functional>

namespace ptq {

/// Sets the number of compute threads, the caller included. Call once, before the first parallel_for.
void set_num_threads(int threads);
int num_threads();

/// Runs body(i) for every i in [0, count) on all threads, the caller included, and waits. Which thread takes which i is not fixed, so
/// bodies must write disjoint memory and may not depend on each other's order: that is what makes results independent of the thread count.
/// The first exception a body throws is thrown again here. Calls from inside a body run on the calling thread alone.
void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

/// Cuts [0, extent) into pieces of at most `grain` and runs body(begin, end) for each.
void parallel_ranges(int64_t extent, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace ptq
