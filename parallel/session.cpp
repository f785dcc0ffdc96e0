#include "parallel/session.h"

#include <mpi.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "parallel/mpi_communicator.h"

namespace ptq::parallel {

namespace {

bool has(const char* name) { return std::getenv(name) != nullptr; }

/// A PMI server is there to talk to. (A batch script's own shell has Slurm's variables too, but none.)
bool started_by_launcher() { return has("OMPI_COMM_WORLD_SIZE") || has("PMIX_RANK") || has("PMI_RANK") || has("PMI_SIZE"); }

/// Slurm's number of tasks; 0 outside a job and under mpirun, which has its own count.
int slurm_tasks() {
  if (has("OMPI_COMM_WORLD_SIZE")) return 0;
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (!tasks) tasks = std::getenv("SLURM_NTASKS");
  return tasks ? std::atoi(tasks) : 0;
}

}  // namespace

Session Session::open(int* argc, char*** argv) {
  Session session;
  if (started_by_launcher()) {
    int provided = MPI_THREAD_SINGLE;
    check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    session.owns_mpi_ = true;
    if (provided < MPI_THREAD_FUNNELED) throw system_error("this MPI library does not support threads (MPI_THREAD_FUNNELED)");
    MPI_Comm world = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup");
    session.world_ = make_mpi_communicator(UniqueHandle<MpiCommTraits>(world));
    MPI_Comm node = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, session.world_->rank(), MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
    const UniqueHandle<MpiCommTraits> local(node);
    MPI_Comm_size(node, &session.local_ranks_);
    MPI_Comm_rank(node, &session.local_rank_);
  } else {
    session.world_ = make_self_communicator();
  }
  return session;
}

void Session::check_task_count() const {
  const int tasks = slurm_tasks();
  if (tasks > 1 && tasks != world_->size())
    throw system_error("Slurm gives this job " + std::to_string(tasks) + " tasks, but MPI sees " + std::to_string(world_->size()) +
                           ": each would run the whole job alone",
                       "SLURM_NTASKS", "start with srun --mpi=pmix and an Open MPI that has PMIx, or with mpirun");
}

Session::Session(Session&& other) noexcept
    : owns_mpi_(std::exchange(other.owns_mpi_, false)),
      local_ranks_(other.local_ranks_),
      local_rank_(other.local_rank_),
      world_(std::move(other.world_)) {}

Session::~Session() {
  world_.reset();
  if (owns_mpi_) MPI_Finalize();
}

void Session::abort(int code) {
  if (owns_mpi_) MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace ptq::parallel
