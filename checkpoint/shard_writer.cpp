// The writing half of output_layout.h.

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "checkpoint/output_layout.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
/// Gives the file its size and, where the file system can, its blocks. Not posix_fallocate: where the file system cannot, that writes a
/// byte into every block, which on a network disk takes as long as writing the file.
void allocate(int fd, const std::string& path, int64_t bytes) {
  int failed = 0;
  do failed = ::fallocate(fd, 0, 0, bytes);
  while (failed != 0 && errno == EINTR);
  if (failed == 0) return;
  const std::string size = std::to_string(bytes) + " bytes";
  if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS) throw errno_error("fallocate of " + size, path, errno);
  do failed = ::ftruncate(fd, bytes);
  while (failed != 0 && errno == EINTR);
  if (failed != 0) throw errno_error("ftruncate to " + size, path, errno);
}
}  // namespace

void ShardWriter::create(const std::string& folder, const OutputLayout& layout) {
  for (const ShardFile& shard : layout.shards()) {
    const std::string path = folder + "/" + shard.name;
    const Fd fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
    allocate(fd.get(), path, shard.bytes);
    write_at(fd.get(), path, 0, shard.header.data(), static_cast<int64_t>(shard.header.size()));
    sync_file(fd.get(), path);
  }
  sync_folder(folder);  // a run that is gone on with relies on these files
}

ShardWriter ShardWriter::open(const std::string& folder, const OutputLayout& layout) {
  ShardWriter writer;
  writer.folder_ = folder;
  writer.layout_ = &layout;
  writer.files_.resize(layout.shards().size());
  writer.dirty_.resize(layout.shards().size());
  return writer;
}

void ShardWriter::write(const std::string& name, int64_t offset, const void* data, int64_t bytes) {
  const TensorPlace& place = layout_->place(name);
  require(0 <= offset && 0 <= bytes && offset <= place.bytes && bytes <= place.bytes - offset, "write outside the tensor");
  if (bytes == 0) return;
  const auto shard = static_cast<size_t>(place.shard);
  const std::string path = folder_ + "/" + layout_->shards()[shard].name;
  if (!files_[shard]) files_[shard] = open_file(path, O_WRONLY);
  dirty_[shard] = true;  // before the write: bytes of a failed one may have arrived
  write_at(files_[shard].get(), path, place.offset + offset, data, bytes);
  std::atomic_ref<int64_t>(bytes_written_).fetch_add(bytes, std::memory_order_relaxed);
}

void ShardWriter::sync() {
  for (size_t i = 0; i < files_.size(); ++i) {
    if (!dirty_[i]) continue;
    sync_file(files_[i].get(), folder_ + "/" + layout_->shards()[i].name);
    dirty_[i] = false;
  }
}

}  // namespace ptq::checkpoint
