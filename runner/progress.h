#pragma once
// How far one step of a run has come (a calibration, a scoring of candidates), kept in a folder so that the same run, started again with
// any number of ranks, goes on from there. It moves on at once or not at all: what it speaks of has to be on disk before.
//   progress.json      {"layers", "done", "parts": [SHA-256]}
//   part_N             what the step wants to remember of its N-th advance
//   states_LAYERS      hidden states or gradients after so many layers, for the sweep to begin with

#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace ptq::runner {

class Progress {
 public:
  /// Makes the folder, or reads what it holds. Throws a data Error where it is damaged. Collective.
  Progress(parallel::Communicator& world, std::string folder);

  /// Was nothing kept yet?
  bool is_new() const { return digests_.empty(); }
  int64_t layers() const { return layers_; }
  bool is_done() const { return done_; }
  /// Of an earlier run, in their order.
  const std::vector<std::string>& parts() const { return parts_; }
  /// The file of states after `layers` layers; its writer calls advance() with that number next.
  std::string states(int64_t layers) const;

  /// Durable when it returns; states of fewer layers are removed. `part`: the same on every rank. Collective.
  void advance(int64_t layers, bool done, const std::string& part);

 private:
  void read();

  parallel::Communicator& world_;
  std::string folder_;
  int64_t layers_ = 0;
  bool done_ = false;
  std::vector<std::string> parts_, digests_;
};

/// The folder of a step's progress below a run's work folder, and of all steps'.
std::string progress_folder(const std::string& work, const std::string& step);
std::string progress_folder(const std::string& work);
/// Did any step of the run that left `work` get anywhere?
bool has_progress(const std::string& work);

}  // namespace ptq::runner
