#pragma once
// The built program as its users see it: started alone or under mpirun, its output and exit code taken, never waited for without an end.

#include <sys/types.h>

#include <string>
#include <vector>

namespace ptq::test {

struct ProgramOptions {
  int ranks = 1;  ///< more than one: under mpirun
  int timeout_seconds = 150;
  std::string input;  ///< its standard input; a short text
};

struct ProgramResult {
  int exit_code = -1;  ///< 128 + N where signal N ended it
  bool is_timed_out = false;
  std::string out, err;
  double seconds = 0;

  /// Lines of stderr that begin with "error:".
  std::vector<std::string> errors() const;
  /// Everything, for a failed test's message.
  std::string report() const;
};

/// Path of ptq-runner in the build tree, or $PTQ_PROGRAM: the same tests for another build of it.
std::string program_path();

/// A program under way. Its destructor ends it.
class RunningProgram {
 public:
  /// ptq-runner with these arguments.
  RunningProgram(const std::vector<std::string>& arguments, const ProgramOptions& options);
  /// Any command.
  static RunningProgram command(const std::vector<std::string>& words, const ProgramOptions& options);
  ~RunningProgram();
  RunningProgram(RunningProgram&& other) noexcept;
  RunningProgram& operator=(RunningProgram&&) = delete;

  pid_t pid() const { return pid_; }
  /// Processes it has started itself: the ranks, under mpirun.
  std::vector<pid_t> children() const;
  /// Takes output until `words` occurred on stderr. False when the program ended or `seconds` passed before.
  bool wait_for_words(const std::string& words, double seconds);
  /// To its end, or to the time limit, counted from the start: then it is killed.
  ProgramResult wait();

 private:
  RunningProgram() = default;
  void make_session_folder();
  void start(const std::vector<std::string>& words, const ProgramOptions& options);
  bool take_output(int timeout_milliseconds);
  void end();

  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;
  double begin_ = 0, timeout_seconds_ = 0;
  ProgramResult result_;
  std::string session_folder_;  ///< of mpirun: those that share one stumble over each other as they make and remove it
};

/// Starts ptq-runner and waits for its end.
ProgramResult run_program(const std::vector<std::string>& arguments, const ProgramOptions& options = {});
struct ProgramCall {
  std::vector<std::string> arguments;
  ProgramOptions options = {};
};
/// Several of them, so many at a time: most of what a job under mpirun takes is waiting. Results in the order of the calls.
std::vector<ProgramResult> run_programs(const std::vector<ProgramCall>& calls, size_t at_a_time);
/// The same as run_program for any command.
ProgramResult run_command(const std::vector<std::string>& words, const ProgramOptions& options = {});

}  // namespace ptq::test
