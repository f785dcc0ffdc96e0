#pragma once
// A Communicator over an MPI_Comm. Messages above 1 GiB go in pieces, because MPI 3 counts are ints.

#include <mpi.h>

#include "kernels/core/unique_handle.h"
#include "parallel/communicator.h"

namespace ptq::parallel {

struct MpiCommTraits {
  using type = MPI_Comm;
  static type empty() { return MPI_COMM_NULL; }
  static void close(type comm);
};

/// Takes the communicator over and frees it at its end. Sets it to return errors, which become system Errors.
std::unique_ptr<Communicator> make_mpi_communicator(UniqueHandle<MpiCommTraits> comm);

/// Throws a system Error with MPI's own words unless `code` is MPI_SUCCESS.
void check_mpi(int code, const char* call);

}  // namespace ptq::parallel
