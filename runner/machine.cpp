#include "runner/machine.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <limits>

namespace ptq::runner {

namespace {

/// The number after `key` in a file of "key: number kB" lines, in bytes; 0 if absent.
int64_t proc_field(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  int64_t kilobytes = 0;
  while (file >> word)
    if (word == key + ":" && file >> kilobytes) return kilobytes * 1024;
  return 0;
}

int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : std::numeric_limits<int64_t>::max();  // "max" is no number
}

/// The memory limit of this process's own cgroup, version 2 or 1.
int64_t cgroup_limit() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  int64_t limit = std::numeric_limits<int64_t>::max();
  while (std::getline(groups, line)) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) limit = std::min(limit, number_in("/sys/fs/cgroup" + path + "/memory.max"));
    if (controllers.find("memory") != std::string::npos)
      limit = std::min(limit, number_in("/sys/fs/cgroup/memory" + path + "/memory.limit_in_bytes"));
  }
  return limit;
}

}  // namespace

int64_t default_host_memory(int local_ranks) {
  int64_t memory = std::min(proc_field("/proc/meminfo", "MemAvailable"), cgroup_limit());
  if (const char* slurm = std::getenv("SLURM_MEM_PER_NODE"))
    if (const int64_t mebibytes = std::atoll(slurm); mebibytes > 0) memory = std::min(memory, mebibytes << 20);
  return static_cast<int64_t>(0.8 * static_cast<double>(memory)) / std::max(1, local_ranks);
}

int default_threads(int local_ranks) {
  // Under srun every rank may see all processors of the node; what it was given is in this variable.
  if (const char* slurm = std::getenv("SLURM_CPUS_PER_TASK"))
    if (const int given = std::atoi(slurm); given > 0) return given;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set) / std::max(1, local_ranks));
}

int64_t resident_bytes() { return proc_field("/proc/self/status", "VmRSS"); }
int64_t peak_resident_bytes() { return proc_field("/proc/self/status", "VmHWM"); }

std::string human_bytes(double bytes) {
  static constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, kUnits[unit]);
}

std::string human_seconds(double seconds) {
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = std::max(int64_t{60}, static_cast<int64_t>(seconds));  // 59.97 s would print as 60.0 s
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
}

}  // namespace ptq::runner
