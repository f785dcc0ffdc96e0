#include "checkpoint/file_descriptor.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
/// Linux moves at most 2 GiB - 4 KiB in one call; a round number below it keeps every call page-aligned when the first one is.
constexpr int64_t kMaxCallBytes = int64_t{1} << 30;
}  // namespace

void FdTraits::close(int fd) {
  // No second try on EINTR: Linux has released the descriptor already, and another thread may own its number by now.
  if (::close(fd) != 0 && errno != EINTR) std::fprintf(stderr, "warning: close: %s\n", std::strerror(errno));
}

Fd open_file(const std::string& path, int flags) {
  int fd = -1;
  do fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  while (fd < 0 && errno == EINTR);
  if (fd < 0) throw errno_error("open", path, errno);
  return Fd(fd);
}

int64_t regular_file_bytes(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw errno_error("fstat", path, errno);
  if (!S_ISREG(status.st_mode)) throw data_error("not a regular file", path);
  return status.st_size;
}

int64_t read_at(int fd, const std::string& path, int64_t offset, void* out, int64_t bytes) {
  int64_t done = 0;
  while (done < bytes) {
    const auto want = static_cast<size_t>(std::min(bytes - done, kMaxCallBytes));
    const ssize_t got = ::pread(fd, static_cast<char*>(out) + done, want, offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw errno_error("pread", path, errno);
    if (got == 0) break;
    done += got;
  }
  return done;
}

void write_at(int fd, const std::string& path, int64_t offset, const void* data, int64_t bytes) {
  int64_t done = 0;
  while (done < bytes) {
    const auto want = static_cast<size_t>(std::min(bytes - done, kMaxCallBytes));
    const ssize_t put = ::pwrite(fd, static_cast<const char*>(data) + done, want, offset + done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw errno_error("pwrite", path, errno);
    if (put == 0) throw errno_error("pwrite", path, EIO);  // POSIX leaves 0 open; going round again could go on for ever
    done += put;
  }
}

void sync_file(int fd, const std::string& path) {
  int failed = 0;
  do failed = ::fsync(fd);
  while (failed != 0 && errno == EINTR);
  if (failed != 0) throw errno_error("fsync", path, errno);
}

void sync_folder(const std::string& path) {
  const Fd fd = open_file(path, O_RDONLY | O_DIRECTORY);
  int failed = 0;
  do failed = ::fsync(fd.get());
  while (failed != 0 && errno == EINTR);
  // Some network and FUSE file systems have nothing to sync in a folder and say so with EINVAL.
  if (failed != 0 && errno != EINVAL) throw errno_error("fsync", path, errno);
}

std::string parent_folder(const std::string& path) {
  const size_t last = path.find_last_not_of('/');
  if (last == std::string::npos) return path.empty() ? "." : "/";
  const size_t slash = path.find_last_of('/', last);
  if (slash == std::string::npos) return ".";
  const size_t end = path.find_last_not_of('/', slash);
  return end == std::string::npos ? "/" : path.substr(0, end + 1);
}

}  // namespace ptq::checkpoint
