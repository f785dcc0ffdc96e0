#include "runner/lease.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "checkpoint/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::runner {
namespace {

using namespace std::chrono_literals;
constexpr LeaseTimes kQuick{20ms, 400ms};

class LeaseTest : public ::testing::Test {
 protected:
  /// What a run on another machine would have written.
  void write_foreign(int64_t beat) const {
    std::string text = checkpoint::Json{{"host", "elsewhere"}, {"boot", "another"}, {"pid", 7}, {"token", "theirs"}, {"beat", beat}}.dump();
    text.resize(512, ' ');
    checkpoint::replace_text(path_, text);
  }
  Lease take() {
    return Lease::take(
        path_, "out.work", [this] { is_lost_ = true; }, kQuick);
  }

  std::atomic<bool> is_lost_{false};

  test::TemporaryFolder folder_;
  const std::string path_ = folder_ / "lock";
};

TEST_F(LeaseTest, OneRunAtATimeHoldsIt) {
  {
    const Lease lease = take();
    EXPECT_FALSE(is_lost_);
    test::expect_error(ErrorKind::kUser, "another run is writing this output: process ", [&] { take(); });
  }
  const Lease next = take();  // an owner of this machine is gone with its lock
  std::this_thread::sleep_for(4 * kQuick.beat);
  EXPECT_FALSE(is_lost_);
}

TEST_F(LeaseTest, ASilentOwnerOfAnotherMachineIsWaitedForAndReplaced) {
  write_foreign(3);
  const auto begin = std::chrono::steady_clock::now();
  const Lease lease = take();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, kQuick.silence);
  EXPECT_FALSE(is_lost_);
}

TEST_F(LeaseTest, OneThatStillBeatsIsNot) {
  write_foreign(0);
  std::atomic<bool> ends{false};
  std::thread owner([&] {
    for (int64_t beat = 1; !ends; ++beat) {
      write_foreign(beat);
      std::this_thread::sleep_for(kQuick.beat);
    }
  });
  test::expect_error(ErrorKind::kUser, "process 7 on elsewhere", [&] { take(); });
  ends = true;
  owner.join();
}

TEST_F(LeaseTest, WhoeverWasReplacedKnows) {
  const Lease lease = take();
  write_foreign(0);
  for (int i = 0; i < 100 && !is_lost_; ++i) std::this_thread::sleep_for(kQuick.beat);
  EXPECT_TRUE(is_lost_);
}

TEST_F(LeaseTest, TheFileMayHaveMovedWhenItIsRemoved) {
  checkpoint::make_folder(folder_ / "work");
  Lease lease = Lease::take(
      folder_ / "work/lock", "work", [] {}, kQuick);
  std::filesystem::rename(folder_ / "work", folder_ / "output");
  lease.remove(folder_ / "output/lock");
  EXPECT_FALSE(checkpoint::exists(folder_ / "output/lock"));
}

TEST_F(LeaseTest, AFileThatSaysNothingIsNobodys) {
  checkpoint::write_text(path_, "no json");
  EXPECT_NO_THROW(take());
}

}  // namespace
}  // namespace ptq::runner
