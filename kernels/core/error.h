#pragma once
// The one exception type of the project. Rooms throw it, layers of the program add context on the way up, only main prints it.

#include <stdexcept>
#include <string>

namespace ptq {

/// What went wrong decides who can repair it and the exit code of every rank.
enum class ErrorKind {
  kCheck = 1,     ///< the output failed verification, or a threshold of the recipe was not met
  kUser = 2,      ///< recipe, flags: names file, key and fix
  kData = 3,      ///< a damaged or unsupported checkpoint or data file
  kSystem = 4,    ///< MPI, disk, memory: carries the failed call and the library's own words
  kBug = 70,      ///< cannot happen
  kStopped = 75,  ///< nothing: the run was asked to stop, and goes on when it is started again
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string message, std::string where = "", std::string fix = "");

  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }
  const std::string& message() const { return message_; }
  const std::string& where() const { return where_; }
  const std::string& fix() const { return fix_; }

  /// "error: MESSAGE\n   at  WHERE\n   fix FIX", without the lines that are empty; "stopped: ..." where nothing is wrong.
  std::string report() const;

 private:
  ErrorKind kind_;
  std::string message_, where_, fix_;
};

/// Errors of each kind. `where` is a file, a key or a tensor; `fix` is what the user can do.
Error user_error(std::string message, std::string where = "", std::string fix = "");
Error data_error(std::string message, std::string where = "", std::string fix = "");
Error system_error(std::string message, std::string where = "", std::string fix = "");
Error bug(std::string message);
/// A failed system call: "CALL: strerror(errno_value)", with a hint where the errno has an obvious one (full disk, permissions).
Error errno_error(const std::string& call, const std::string& path, int errno_value);

/// Throws a bug unless `claim` holds. For what no input can cause.
inline void require(bool claim, const char* what) {
  if (!claim) throw bug(what);
}

}  // namespace ptq
