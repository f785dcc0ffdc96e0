#pragma once
// The session of an MPI test program and its world. A test runs on every rank at once; it must not leave early on one rank (EXPECT, not
// ASSERT, wherever ranks may differ), or the others wait for ever.

#include "parallel/session.h"

namespace ptq::test {

parallel::Session& mpi_session();
parallel::Communicator& world();

}  // namespace ptq::test
