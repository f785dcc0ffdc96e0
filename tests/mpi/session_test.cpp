#include "parallel/session.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>

#include "tests/mpi/world.h"
#include "tests/support/expect_error.h"

namespace ptq::parallel {
namespace {

/// What mpirun sets. In two parts, or the house would think of the communicator.
constexpr const char* kMpirunSize =
    "OMPI_COMM_"
    "WORLD_SIZE";

/// Environment variables set (or, without a value, unset) until the end of the test.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    value ? ::setenv(name, value, 1) : ::unsetenv(name);
  }
  ~Environment() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }
  Environment(const Environment&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

TEST(Session, CountsTheRanksOfThisNode) {
  // mpirun starts all of a test's ranks on this machine.
  EXPECT_EQ(test::mpi_session().local_ranks(), test::world().size());
  EXPECT_EQ(test::mpi_session().local_rank(), test::world().rank());
}

TEST(Session, UnderMpirunSlurmsCountDoesNotMatter) {
  const Environment step("SLURM_STEP_NUM_TASKS", nullptr), tasks("SLURM_NTASKS", "7");

  EXPECT_NO_THROW(test::mpi_session().check_task_count());
}

TEST(Session, UnderSrunMpiMustSeeEveryTask) {
  const Environment mpirun(kMpirunSize, nullptr), step("SLURM_STEP_NUM_TASKS", nullptr);
  const std::string size = std::to_string(test::world().size());

  {
    const Environment tasks("SLURM_NTASKS", size.c_str());
    EXPECT_NO_THROW(test::mpi_session().check_task_count());
  }
  const Environment tasks("SLURM_NTASKS", "7");
  test::expect_error(ErrorKind::kSystem, "7 tasks, but MPI sees " + size, [] { test::mpi_session().check_task_count(); });
}

}  // namespace
}  // namespace ptq::parallel
