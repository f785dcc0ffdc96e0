#include "parallel/session.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/expect_error.h"

namespace ptq::parallel {
namespace {

/// What mpirun sets. In two parts, or the house would think of the communicator.
constexpr const char* kMpirunSize =
    "OMPI_COMM_"
    "WORLD_SIZE";

/// A process that no launcher started, whatever started this test.
class SessionWithoutLauncher : public testing::Test {
 protected:
  Session session_ = open();

 private:
  static Session open() {
    for (const char* name : {kMpirunSize, "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"}) ::unsetenv(name);
    return Session::open(nullptr, nullptr);
  }
};

TEST_F(SessionWithoutLauncher, IsOneRankAlone) {
  EXPECT_EQ(session_.world().size(), 1);
  EXPECT_EQ(session_.local_ranks(), 1);
  EXPECT_EQ(session_.local_rank(), 0);
}

TEST_F(SessionWithoutLauncher, RunsInAJobOfOneTaskOrNone) {
  EXPECT_NO_THROW(session_.check_task_count());

  ::setenv("SLURM_NTASKS", "1", 1);

  EXPECT_NO_THROW(session_.check_task_count());
}

TEST_F(SessionWithoutLauncher, RefusesToRunManyTimesAlone) {
  ::setenv("SLURM_NTASKS", "4", 1);

  test::expect_error(ErrorKind::kSystem, "4 tasks, but MPI sees 1", [&] { session_.check_task_count(); });
}

TEST_F(SessionWithoutLauncher, BelievesTheStepMoreThanTheJob) {
  ::setenv("SLURM_NTASKS", "4", 1);
  ::setenv("SLURM_STEP_NUM_TASKS", "1", 1);

  EXPECT_NO_THROW(session_.check_task_count());
}

TEST_F(SessionWithoutLauncher, AbortLeavesWithTheCode) { EXPECT_EXIT(session_.abort(70), testing::ExitedWithCode(70), ""); }

}  // namespace
}  // namespace ptq::parallel
