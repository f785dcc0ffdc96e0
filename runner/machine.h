#pragma once
// What this machine gives a rank: memory, processors, and how much of them is used.

#include <cstdint>
#include <string>

namespace ptq::runner {

/// 0.8 × the smallest of the cgroup limit, Slurm's memory per node and the memory now available, divided by the ranks on this node.
int64_t default_host_memory(int local_ranks);
/// Processors this process may run on, divided by the ranks on this node; at least 1.
int default_threads(int local_ranks);
/// Resident bytes now and at most so far (VmRSS, VmHWM).
int64_t resident_bytes();
int64_t peak_resident_bytes();

/// "1.50 GiB", "12.3 s": numbers for people.
std::string human_bytes(double bytes);
std::string human_seconds(double seconds);

}  // namespace ptq::runner
