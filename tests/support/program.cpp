#include "tests/support/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>

namespace ptq::test {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Pipe {
  int read_end = -1, write_end = -1;
};

Pipe make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error(std::string("pipe2: ") + std::strerror(errno));
  return {ends[0], ends[1]};
}

/// Only calls that are safe between fork and exec.
[[noreturn]] void become(const std::vector<char*>& words, const Pipe& in, const Pipe& out, const Pipe& err) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // a killed test leaves no mpirun behind
  ::dup2(in.read_end, STDIN_FILENO);
  ::dup2(out.write_end, STDOUT_FILENO);
  ::dup2(err.write_end, STDERR_FILENO);
  ::execvp(words[0], words.data());
  ::_exit(127);
}

void close_pipe_end(int& end) {
  if (end >= 0) ::close(end);
  end = -1;
}

}  // namespace

std::vector<std::string> ProgramResult::errors() const {
  std::vector<std::string> lines;
  std::istringstream text(err);
  for (std::string line; std::getline(text, line);)
    if (line.starts_with("error:")) lines.push_back(line);
  return lines;
}

std::string ProgramResult::report() const {
  std::ostringstream text;
  text << "exit code " << exit_code << (is_timed_out ? ", killed at its time limit" : "") << " after " << seconds << " s\n--- stdout\n"
       << out << "--- stderr\n"
       << err;
  return text.str();
}

std::string program_path() {
  const char* set = std::getenv("PTQ_PROGRAM");
  return set ? set : std::string(PTQ_BINARY_DIR) + "/bin/ptq-runner";
}

RunningProgram::RunningProgram(const std::vector<std::string>& arguments, const ProgramOptions& options) {
  std::vector<std::string> words;
  if (options.ranks > 1) {
    make_session_folder();
    words = {"env", "OMPI_MCA_orte_tmpdir_base=" + session_folder_, std::string(PTQ_SOURCE_DIR) + "/tests/support/mpirun.sh",
             std::to_string(options.ranks)};
  }
  words.push_back(program_path());
  words.insert(words.end(), arguments.begin(), arguments.end());
  start(words, options);
}

RunningProgram RunningProgram::command(const std::vector<std::string>& words, const ProgramOptions& options) {
  RunningProgram program;
  program.start(words, options);
  return program;
}

RunningProgram::RunningProgram(RunningProgram&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      out_(std::exchange(other.out_, -1)),
      err_(std::exchange(other.err_, -1)),
      begin_(other.begin_),
      timeout_seconds_(other.timeout_seconds_),
      result_(std::move(other.result_)),
      session_folder_(std::exchange(other.session_folder_, "")) {}

RunningProgram::~RunningProgram() {
  end();
  close_pipe_end(out_);
  close_pipe_end(err_);
  std::error_code ignored;
  if (!session_folder_.empty()) std::filesystem::remove_all(session_folder_, ignored);
}

void RunningProgram::make_session_folder() {
  session_folder_ = (std::filesystem::temp_directory_path() / "ptq_mpi_XXXXXX").string();
  if (!::mkdtemp(session_folder_.data())) throw std::runtime_error(std::string("mkdtemp: ") + std::strerror(errno));
}

void RunningProgram::start(const std::vector<std::string>& words, const ProgramOptions& options) {
  begin_ = now();
  timeout_seconds_ = options.timeout_seconds;
  std::vector<char*> arguments;
  for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  Pipe in = make_pipe(), out = make_pipe(), err = make_pipe();
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error(std::string("fork: ") + std::strerror(errno));
  if (pid_ == 0) become(arguments, in, out, err);
  close_pipe_end(in.read_end);
  close_pipe_end(out.write_end);
  close_pipe_end(err.write_end);
  out_ = out.read_end;
  err_ = err.read_end;
  // The input fits into the pipe; a program that does not want it must not end the test.
  ::signal(SIGPIPE, SIG_IGN);
  if (!options.input.empty() && ::write(in.write_end, options.input.data(), options.input.size()) < 0 && errno != EPIPE)
    throw std::runtime_error(std::string("write: ") + std::strerror(errno));
  close_pipe_end(in.write_end);
}

/// Waits for output for so long. False when there is no more to come.
bool RunningProgram::take_output(int timeout_milliseconds) {
  pollfd polled[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
  if (out_ < 0 && err_ < 0) return false;
  if (::poll(polled, 2, timeout_milliseconds) <= 0) return true;
  for (int i = 0; i < 2; ++i) {
    if (!polled[i].revents) continue;
    char buffer[1 << 16];
    int& end = i == 0 ? out_ : err_;
    const ssize_t got = ::read(end, buffer, sizeof(buffer));
    if (got > 0)
      (i == 0 ? result_.out : result_.err).append(buffer, static_cast<size_t>(got));
    else
      close_pipe_end(end);
  }
  return true;
}

std::vector<pid_t> RunningProgram::children() const {
  std::ifstream file("/proc/" + std::to_string(pid_) + "/task/" + std::to_string(pid_) + "/children");
  std::vector<pid_t> found;
  for (pid_t child; file >> child;) found.push_back(child);
  return found;
}

bool RunningProgram::wait_for_words(const std::string& words, double seconds) {
  for (const double limit = now() + seconds; now() < limit;) {
    if (result_.err.find(words) != std::string::npos) return true;
    if (!take_output(20)) return false;
  }
  return false;
}

ProgramResult RunningProgram::wait() {
  while (now() - begin_ < timeout_seconds_ && take_output(100)) {
  }
  int status = 0;
  pid_t ended = 0;
  while ((ended = ::waitpid(pid_, &status, WNOHANG)) == 0 && now() - begin_ < timeout_seconds_)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  result_.is_timed_out = ended == 0;
  if (ended != 0) {
    pid_ = -1;
    result_.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  } else {
    end();
    result_.exit_code = -1;
  }
  result_.seconds = now() - begin_;
  return result_;
}

/// mpirun is asked first, because only it knows its ranks; who does not listen is killed.
void RunningProgram::end() {
  if (pid_ <= 0) return;
  const std::vector<pid_t> ranks = children();
  ::kill(-pid_, SIGTERM);
  for (int i = 0; i < 300; ++i) {
    if (::waitpid(pid_, nullptr, WNOHANG) != 0) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (i < 299) continue;
    for (const pid_t rank : ranks) ::kill(rank, SIGKILL);
    ::kill(-pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_ = -1;
}

ProgramResult run_program(const std::vector<std::string>& arguments, const ProgramOptions& options) {
  return RunningProgram(arguments, options).wait();
}

std::vector<ProgramResult> run_programs(const std::vector<ProgramCall>& calls, size_t at_a_time) {
  std::deque<RunningProgram> running;
  std::vector<ProgramResult> results;
  for (size_t next = 0; results.size() < calls.size();) {
    while (next < calls.size() && running.size() < at_a_time) {
      running.emplace_back(calls[next].arguments, calls[next].options);
      ++next;
    }
    results.push_back(running.front().wait());
    running.pop_front();
  }
  return results;
}

ProgramResult run_command(const std::vector<std::string>& words, const ProgramOptions& options) {
  return RunningProgram::command(words, options).wait();
}

}  // namespace ptq::test
