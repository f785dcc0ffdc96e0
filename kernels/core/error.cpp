#include "kernels/core/error.h"

#include <cerrno>
#include <cstring>

namespace ptq {

namespace {
std::string one_line(const std::string& message, const std::string& where) {
  return where.empty() ? message : message + " (" + where + ")";
}
}  // namespace

Error::Error(ErrorKind kind, std::string message, std::string where, std::string fix)
    : std::runtime_error(one_line(message, where)),
      kind_(kind),
      message_(std::move(message)),
      where_(std::move(where)),
      fix_(std::move(fix)) {}

std::string Error::report() const {
  std::string text = (kind_ == ErrorKind::kStopped ? "stopped: " : "error: ") + message_;
  if (!where_.empty()) text += "\n   at  " + where_;
  if (!fix_.empty()) text += "\n   fix " + fix_;
  return text;
}

Error user_error(std::string message, std::string where, std::string fix) {
  return {ErrorKind::kUser, std::move(message), std::move(where), std::move(fix)};
}
Error data_error(std::string message, std::string where, std::string fix) {
  return {ErrorKind::kData, std::move(message), std::move(where), std::move(fix)};
}
Error system_error(std::string message, std::string where, std::string fix) {
  return {ErrorKind::kSystem, std::move(message), std::move(where), std::move(fix)};
}
Error bug(std::string message) {
  return {ErrorKind::kBug, std::move(message), "", "this is a bug in ptq-runner: please report it with the recipe"};
}

Error errno_error(const std::string& call, const std::string& path, int errno_value) {
  std::string fix;
  switch (errno_value) {
    case ENOSPC:
    case EDQUOT:
      fix = "free disk space or choose another output.path or scratch";
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      fix = "choose a place this user may write to, or change its permissions";
      break;
    case EMFILE:
    case ENFILE:
      fix = "raise the limit of open files (ulimit -n)";
      break;
    default:
      break;
  }
  return system_error(call + ": " + std::strerror(errno_value), path, fix);
}

}  // namespace ptq
