#pragma once
// Owns MPI from start to end. main's first local, so that it outlives every communicator. A program started without a launcher never
// touches MPI: one rank works on a machine with no MPI runtime set up.

#include <memory>

#include "parallel/communicator.h"

namespace ptq::parallel {

class Session {
 public:
  /// Initialises MPI (FUNNELED) if mpirun, srun or another PMI launcher started this process. Throws a system Error when MPI cannot.
  static Session open(int* argc, char*** argv);
  Session(Session&& other) noexcept;
  Session& operator=(Session&&) = delete;
  ~Session();

  /// Throws a system Error when MPI_Comm_size disagrees with SLURM_NTASKS: each task would run alone and believe it is the whole job.
  void check_task_count() const;

  Communicator& world() { return *world_; }
  /// Ranks on this node, this one among them.
  int local_ranks() const { return local_ranks_; }
  int local_rank() const { return local_rank_; }

  /// Ends every rank at once with this exit code. For errors that the ranks cannot agree on any more.
  [[noreturn]] void abort(int code);

 private:
  Session() = default;
  bool owns_mpi_ = false;
  int local_ranks_ = 1, local_rank_ = 0;
  std::unique_ptr<Communicator> world_;
};

}  // namespace ptq::parallel
