#include "runner/lease.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "checkpoint/file_descriptor.h"
#include "kernels/core/error.h"

namespace ptq::runner {

namespace {

using checkpoint::Fd;

/// The file is always of this length: a beat is one write in place, and no reader meets half of one.
constexpr size_t kBytes = 512;

/// What the file says. Two owners are never of one token.
struct Owner {
  std::string host, boot, token;
  int64_t pid = 0, beat = 0;
};

/// What tells two machines, and two starts of one, apart.
std::string boot_of_this_machine() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  return boot;
}

Owner this_process() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  std::random_device random;
  return {host.data(), boot_of_this_machine(), std::to_string(random()) + std::to_string(random()), ::getpid(), 0};
}

std::string text_of(const Owner& owner) {
  std::string text =
      nlohmann::json{{"host", owner.host}, {"boot", owner.boot}, {"pid", owner.pid}, {"token", owner.token}, {"beat", owner.beat}}.dump();
  text.resize(kBytes, ' ');
  text.back() = '\n';
  return text;
}

/// Nobody where the file is new, or was never written.
Owner owner_in(int fd, const std::string& path) {
  std::string text(kBytes, ' ');
  text.resize(static_cast<size_t>(checkpoint::read_at(fd, path, 0, text.data(), kBytes)));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return {};
  try {
    return {json.at("host"), json.at("boot"), json.at("token"), json.at("pid"), json.at("beat")};
  } catch (const nlohmann::json::exception&) {
    return {};
  }
}

enum class Lock { kTaken, kHeld, kNone };

Lock try_lock(int fd) {
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &range) == 0) return Lock::kTaken;
  return errno == EAGAIN || errno == EACCES ? Lock::kHeld : Lock::kNone;
}

Fd open_lock(const std::string& path) { return checkpoint::open_file(path, O_RDWR | O_CREAT); }

[[noreturn]] void refuse(const Owner& owner, const std::string& work) {
  throw user_error(
      "another run is writing this output" + (owner.host.empty() ? "" : ": process " + std::to_string(owner.pid) + " on " + owner.host),
      work, "wait for it, or choose another output.path");
}

/// Returns when no beat came for the time of silence. The file is opened again each time: network file systems then look at the server.
void wait_for_silence(const std::string& path, const std::string& work, const Owner& owner, LeaseTimes times) {
  const auto end = std::chrono::steady_clock::now() + times.silence;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(times.beat / 2);
    const Owner now = owner_in(open_lock(path).get(), path);
    if (now.token != owner.token || now.beat != owner.beat) refuse(now, work);
  }
}

bool is_same_file(int fd, const std::string& path) {
  struct stat open {
  }, named{};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_ino == named.st_ino && open.st_dev == named.st_dev;
}

}  // namespace

struct Lease::Held {
  std::string path;
  Fd file;
  Owner owner;
  LeaseTimes times;
  std::function<void()> on_loss;
  std::mutex mutex;
  std::condition_variable wake;
  bool ends = false;  ///< guarded by mutex
  std::thread thread;

  void start() {
    checkpoint::write_at(file.get(), path, 0, text_of(owner).data(), kBytes);
    thread = std::thread([this] { beat(); });
  }

  void beat() {
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, times.beat, [this] { return ends; })) {
      try {
        // Through the name: whoever took the lease over put a file of its own there, or wrote into this one.
        const Fd named(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        if (!named || owner_in(named.get(), path).token != owner.token) return on_loss();
        ++owner.beat;
        checkpoint::write_at(file.get(), path, 0, text_of(owner).data(), kBytes);
      } catch (const Error&) {
        // A file system that fails for a while: beats go on when it is back, if nobody has taken over by then.
      }
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      ends = true;
    }
    wake.notify_all();
    if (thread.joinable()) thread.join();
  }

  ~Held() { stop(); }
};

Lease::Lease(std::unique_ptr<Held> held) : held_(std::move(held)) {}
Lease::Lease(Lease&&) noexcept = default;
Lease& Lease::operator=(Lease&&) noexcept = default;
Lease::~Lease() = default;

Lease Lease::take(const std::string& path, const std::string& work, std::function<void()> on_loss, LeaseTimes times) {
  auto held = std::make_unique<Held>();
  held->path = path;
  held->owner = this_process();
  held->times = times;
  held->on_loss = std::move(on_loss);
  held->file = open_lock(path);
  Lock lock = try_lock(held->file.get());
  const Owner last = owner_in(held->file.get(), path);
  const bool is_local = last.boot == held->owner.boot;
  // The kernel of one machine is never wrong about its own processes; a server may be about those of others.
  if (lock == Lock::kHeld && (is_local || last.token.empty())) refuse(last, work);
  if (!last.token.empty() && !(is_local && lock == Lock::kTaken)) wait_for_silence(path, work, last, times);
  if (lock == Lock::kHeld) {  // by a machine that is gone
    std::filesystem::remove(path);
    held->file = open_lock(path);
    lock = try_lock(held->file.get());
  }
  if (lock == Lock::kHeld || !is_same_file(held->file.get(), path)) refuse(owner_in(held->file.get(), path), work);
  held->start();
  return Lease(std::move(held));
}

void Lease::remove(const std::string& path) {
  held_->stop();
  std::error_code failed;
  std::filesystem::remove(path, failed);
  held_.reset();
}

}  // namespace ptq::runner
