#pragma once
// How a run is asked to end before it is done, by Slurm or a person, and when it listens.
//   SIGUSR1                     the window at hand is finished and kept, then all ranks leave
//   SLURM_JOB_END_TIME is near  the same, where the next window might not be finished in time
//   SIGTERM                     this process leaves at once: a launcher kills it a second later, and what is on disk is whole at any time

#include "parallel/communicator.h"

namespace ptq::parallel {

/// Listens from now on, for the life of the process. `speaks`: whether this rank says that it leaves on SIGTERM.
void listen_for_stops(bool speaks);

/// Nothing is left to be stopped: both signals are ignored from now on.
void listen_no_more();

/// The end of a window, whose results are kept: throws an AgreedError of kind kStopped on all ranks where one was asked to stop, or where
/// the time to the job's end is less than the longest time between two such calls and a reserve. Collective; nothing without
/// listen_for_stops().
void stop_if_asked(Communicator& world);

}  // namespace ptq::parallel
