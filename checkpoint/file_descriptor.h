#pragma once
// An owned POSIX file descriptor and the handful of calls on it, made whole: interrupted and partial calls go on, failures throw a system
// Error with the errno's words. Positioned reads and writes only, so that threads may share a descriptor.

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "kernels/core/unique_handle.h"

namespace ptq::checkpoint {

struct FdTraits {
  using type = int;
  static int empty() { return -1; }
  static void close(int fd);
};
using Fd = UniqueHandle<FdTraits>;

/// open(2) with O_CLOEXEC; a created file gets mode 0666 less the umask. In the functions below `path` is only for messages.
Fd open_file(const std::string& path, int flags);
/// Bytes in the file. Throws a data Error when it is not a regular file (a folder, a pipe that would block).
int64_t regular_file_bytes(int fd, const std::string& path);
/// Reads up to `bytes` bytes at `offset`, fewer only at the end of the file. Returns how many.
int64_t read_at(int fd, const std::string& path, int64_t offset, void* out, int64_t bytes);
void write_at(int fd, const std::string& path, int64_t offset, const void* data, int64_t bytes);
void sync_file(int fd, const std::string& path);
/// fsyncs a folder: names made, renamed or removed in it survive a crash.
void sync_folder(const std::string& path);
/// The folder a name lies in: "." for a bare name, "/" for a name in the root. A '/' at the end does not count.
std::string parent_folder(const std::string& path);

}  // namespace ptq::checkpoint
