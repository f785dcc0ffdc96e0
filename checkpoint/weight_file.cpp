#include "checkpoint/weight_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

constexpr int64_t kPage = 4096;  // what offsets, lengths and memory of direct reads are multiples of
/// A piece: large enough for a disk to stream, small enough that its bounce buffer stays near the cores.
constexpr int64_t kPiece = int64_t{4} << 20;
/// Below this a direct read's overhead is not worth it.
constexpr int64_t kDirectLeast = int64_t{1} << 20;

/// One page-aligned buffer a thread, for pieces whose place in the file or in memory is not aligned.
std::byte* bounce_buffer() {
  constexpr size_t kBytes = static_cast<size_t>(kPiece + 2 * kPage);
  thread_local std::vector<std::byte> memory(kBytes + static_cast<size_t>(kPage));
  void* aligned = memory.data();
  size_t room = memory.size();
  return static_cast<std::byte*>(std::align(static_cast<size_t>(kPage), kBytes, aligned, room));
}

}  // namespace

WeightFile::WeightFile(std::string path)
    : path_(std::move(path)), buffered_(open_file(path_, O_RDONLY | O_NONBLOCK)) {  // a named pipe is refused below instead of waited for
  bytes_ = regular_file_bytes(buffered_.get(), path_);
  ::posix_fadvise(buffered_.get(), 0, 0, POSIX_FADV_SEQUENTIAL);  // only a hint: its failure changes nothing
#ifdef O_DIRECT
  direct_ = Fd(::open(path_.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  can_direct_ = static_cast<bool>(direct_);
#endif
  if (can_direct_ && bytes_ > 0) {
    void* const pages = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ, MAP_SHARED, buffered_.get(), 0);
    if (pages != MAP_FAILED) pages_ = pages;
  }
}

WeightFile::~WeightFile() {
  if (pages_) ::munmap(pages_, static_cast<size_t>(bytes_));
}

bool WeightFile::is_cached(int64_t offset, int64_t bytes) const {
  if (!pages_) return false;
  std::array<unsigned char, kPiece / kPage + 2> resident{};
  const int64_t first = offset / kPage * kPage;
  if (::mincore(static_cast<char*>(pages_) + first, static_cast<size_t>(offset + bytes - first), resident.data()) != 0) return false;
  const int64_t pages = (offset + bytes - first + kPage - 1) / kPage;
  return std::all_of(resident.begin(), resident.begin() + pages, [](unsigned char page) { return (page & 1) != 0; });
}

int64_t WeightFile::read_direct(int64_t offset, std::byte* out, int64_t bytes) const {
  std::byte* const buffer = bounce_buffer();
  const int64_t first = offset / kPage * kPage, head = offset - first;
  const int64_t wanted = (head + bytes + kPage - 1) / kPage * kPage;
  int64_t done = 0;
  while (done < head + bytes) {
    const ssize_t moved = ::pread(direct_.get(), buffer + done, static_cast<size_t>(wanted - done), first + done);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) return -1;
    if (moved < 0) throw errno_error("pread", path_, errno);
    done += moved;
    if (moved == 0 || done % kPage != 0) break;  // the end of the file
  }
  const int64_t got = std::min(bytes, done - head);
  if (got > 0) std::memcpy(out, buffer + head, static_cast<size_t>(got));
  return std::max<int64_t>(got, 0);
}

int64_t WeightFile::read(int64_t offset, std::byte* out, int64_t bytes) const {
  int64_t done = 0;
  while (done < bytes) {
    const int64_t want = std::min(bytes - done, kPiece);
    int64_t got = -1;
    if (want >= kDirectLeast && offset + done + want <= bytes_ && can_direct_ && !is_cached(offset + done, want)) {
      got = read_direct(offset + done, out + done, want);
      if (got < 0) can_direct_ = false;
    }
    if (got < 0) got = read_at(buffered_.get(), path_, offset + done, out + done, want);
    done += got;
    if (got < want) break;
  }
  return done;
}

}  // namespace ptq::checkpoint
