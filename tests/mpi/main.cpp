// main of every MPI test program: all ranks run the same tests in the same order, rank 0 tells the story, any rank's failure fails all.

#include <gtest/gtest.h>

#include <cstdio>

#include "tests/mpi/world.h"

namespace ptq::test {

namespace {

parallel::Session* session = nullptr;

/// Prints a failure with the rank it happened on.
class FailuresOfThisRank : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed())
      std::fprintf(stderr, "rank %d: %s:%d: %s\n", world().rank(), result.file_name() ? result.file_name() : "", result.line_number(),
                   result.summary());
  }
};

}  // namespace

parallel::Session& mpi_session() { return *session; }
parallel::Communicator& world() { return session->world(); }

int run(int argc, char** argv) {
  parallel::Session owner = parallel::Session::open(&argc, &argv);
  session = &owner;
  testing::InitGoogleTest(&argc, argv);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world().rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOfThisRank);
  }
  int64_t failed = RUN_ALL_TESTS();
  if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) failed = 1;
  world().all_reduce_max(std::span<int64_t>(&failed, 1));
  return failed == 0 ? 0 : 1;
}

}  // namespace ptq::test

int main(int argc, char** argv) { return ptq::test::run(argc, argv); }
