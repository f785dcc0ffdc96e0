#pragma once
// Who may write a work folder: one run at a time, however the one before ended and whichever machine it was on.
// A lock file holds two proofs. An open-file-description lock, which the kernel drops with its owner: all that counts between processes of
// one machine. And a beat, a number its owner counts up, for file systems that keep no locks between machines or keep them for the dead:
// where the last owner was on another machine, its silence is waited for.

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace ptq::runner {

struct LeaseTimes {
  std::chrono::milliseconds beat{3'000};      ///< between two beats
  std::chrono::milliseconds silence{30'000};  ///< without a beat: the owner is gone
};

class Lease {
 public:
  /// Takes the lock file `path`, made where it is not there; its folder must be. `work` is the folder it is for, in messages. Returns at
  /// once where the last owner was of this machine, else after the silence. `on_loss` is called, from another thread, when another run
  /// took it that saw no beat for so long: this one must write no more. Throws a user Error while another run holds it, a system Error
  /// where the file cannot be written.
  static Lease take(const std::string& path, const std::string& work, std::function<void()> on_loss, LeaseTimes times = {});
  Lease(Lease&&) noexcept;
  Lease& operator=(Lease&&) noexcept;
  ~Lease();

  /// Removes the file, at `path` now that the folder may have another name, and drops the lock.
  void remove(const std::string& path);

 private:
  struct Held;
  explicit Lease(std::unique_ptr<Held> held);
  std::unique_ptr<Held> held_;
};

}  // namespace ptq::runner
