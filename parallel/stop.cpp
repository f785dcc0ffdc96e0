#include "parallel/stop.h"

#include <unistd.h>
#include <csignal>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>

namespace ptq::parallel {

namespace {

using Clock = std::chrono::steady_clock;

/// For the messages, the files of one more window that are written more slowly, and the launcher.
constexpr double kReserveSeconds = 20;
constexpr double kSlowerWindow = 1.25;
constexpr const char* kGoOn = "run the same command again: it goes on from what is done";

std::atomic<bool> is_asked{false};
bool is_listening = false;
bool says_so = false;
std::chrono::time_point<Clock> last_window;
double longest_window = 0;

void remember(int) { is_asked = true; }

/// Only what may be called in a signal handler.
void leave(int) {
  static constexpr char kWords[] = "stopped: SIGTERM was received\n   fix run the same command again: it goes on from what is done\n";
  if (says_so) [[maybe_unused]]
    const ssize_t written = ::write(STDERR_FILENO, kWords, sizeof(kWords) - 1);
  ::_exit(static_cast<int>(ErrorKind::kStopped));
}

void handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  ::sigaction(signal, &action, nullptr);
}

/// Seconds until Slurm ends the job; a day where it does not say.
double seconds_left() {
  constexpr double kDay = 86400;
  const char* const end = std::getenv("SLURM_JOB_END_TIME");
  if (!end || std::atoll(end) <= 0) return kDay;
  const auto now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return static_cast<double>(std::atoll(end)) - now;
}

}  // namespace

void listen_for_stops(bool speaks) {
  says_so = speaks;
  is_listening = true;
  last_window = Clock::now();
  handle(SIGUSR1, remember);
  handle(SIGTERM, leave);
}

void listen_no_more() {
  if (!is_listening) return;
  is_listening = false;
  handle(SIGUSR1, SIG_IGN);
  handle(SIGTERM, SIG_IGN);
}

void stop_if_asked(Communicator& world) {
  if (!is_listening) return;
  const auto now = Clock::now();
  longest_window = std::max(longest_window, std::chrono::duration<double>(now - last_window).count());
  last_window = now;
  const bool is_late = seconds_left() < kSlowerWindow * longest_window + kReserveSeconds;
  std::array<int64_t, 2> any{is_asked ? 1 : 0, is_late ? 1 : 0};
  world.all_reduce_max(std::span<int64_t>(any));
  if (any[0] != 0) throw AgreedError(Error(ErrorKind::kStopped, "SIGUSR1 was received, and the layers at hand are finished", "", kGoOn));
  if (any[1] != 0)
    throw AgreedError(Error(ErrorKind::kStopped, "the job's time limit is too near for more layers", "SLURM_JOB_END_TIME", kGoOn));
}

}  // namespace ptq::parallel
