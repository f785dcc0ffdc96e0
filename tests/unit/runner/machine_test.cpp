#include "runner/machine.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <vector>

namespace ptq::runner {
namespace {

TEST(HumanBytes, TakesTheLargestUnitThatFits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(1.5 * 1024 * 1024), "1.50 MiB");
  EXPECT_EQ(human_bytes(16.0 * (1 << 30)), "16.00 GiB");
  EXPECT_EQ(human_bytes(0x1p50), "1024.00 TiB");
}

TEST(HumanSeconds, SaysMinutesAndHours) {
  EXPECT_EQ(human_seconds(0), "0.0 s");
  EXPECT_EQ(human_seconds(12.34), "12.3 s");
  EXPECT_EQ(human_seconds(60), "1 min 0 s");
  EXPECT_EQ(human_seconds(3599.9), "59 min 59 s");
  EXPECT_EQ(human_seconds(3600), "1 h 0 min");
  EXPECT_EQ(human_seconds(2 * 3600 + 5 * 60 + 59), "2 h 5 min");
}

TEST(HumanSeconds, NeverSaysSixtySeconds) { EXPECT_EQ(human_seconds(59.97), "1 min 0 s"); }

TEST(ResidentBytes, SeesMemoryComeAndGo) {
  const int64_t before = resident_bytes();
  {
    std::vector<char> much(64 << 20);
    std::memset(much.data(), 1, much.size());
    EXPECT_GT(resident_bytes(), before + (60 << 20));
  }

  EXPECT_GT(peak_resident_bytes(), before + (60 << 20));
  EXPECT_GE(peak_resident_bytes(), resident_bytes());
}

TEST(DefaultHostMemory, IsSharedByTheRanksOfANodeAndBoundBySlurm) {
  ::unsetenv("SLURM_MEM_PER_NODE");
  const int64_t alone = default_host_memory(1);
  EXPECT_GT(alone, 0);

  ::setenv("SLURM_MEM_PER_NODE", "100", 1);  // MiB
  EXPECT_EQ(default_host_memory(1), (100 << 20) / 10 * 8);
  EXPECT_EQ(default_host_memory(4), (100 << 20) / 10 * 2);
  ::setenv("SLURM_MEM_PER_NODE", "0", 1);  // the whole node
  EXPECT_GT(default_host_memory(1), 100 << 20);
  ::unsetenv("SLURM_MEM_PER_NODE");
}

TEST(DefaultThreads, AreSharedByTheRanksOfANodeUnlessSlurmCountsThem) {
  ::unsetenv("SLURM_CPUS_PER_TASK");
  EXPECT_GE(default_threads(1), 1);
  EXPECT_EQ(default_threads(100000), 1);

  ::setenv("SLURM_CPUS_PER_TASK", "7", 1);
  EXPECT_EQ(default_threads(3), 7);
  ::unsetenv("SLURM_CPUS_PER_TASK");
}

}  // namespace
}  // namespace ptq::runner
