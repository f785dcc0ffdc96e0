#include "checkpoint/byte_slice.h"

#include <cstring>
#include <utility>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
bool is_inside(int64_t offset, int64_t bytes, int64_t whole) {
  return offset >= 0 && bytes >= 0 && offset <= whole && bytes <= whole - offset;
}
}  // namespace

ByteSlice::ByteSlice(std::shared_ptr<const WeightFile> file, std::string where, int64_t offset, int64_t bytes)
    : file_(std::move(file)), where_(std::move(where)), offset_(offset), bytes_(bytes) {
  if (!is_inside(offset, bytes, file_->bytes()))
    throw data_error("the file is truncated: bytes " + std::to_string(offset) + " and " + std::to_string(bytes) +
                         " more are wanted, and it has " + std::to_string(file_->bytes()),
                     where_, "copy the checkpoint again, completely");
}

ByteSlice ByteSlice::of_file(const std::string& path) {
  auto file = std::make_shared<const WeightFile>(path);
  const int64_t bytes = file->bytes();
  return {std::move(file), path, 0, bytes};
}

ByteSlice ByteSlice::of_slice(const FileSlice& slice) {
  return {std::make_shared<const WeightFile>(slice.path), where_of(slice), slice.offset, slice.bytes};
}

ByteSlice::ByteSlice(std::shared_ptr<const std::string> memory, std::string where)
    : memory_(std::move(memory)), where_(std::move(where)), bytes_(static_cast<int64_t>(memory_->size())) {}

void ByteSlice::check_inside(int64_t offset, int64_t bytes) const {
  if (!is_inside(offset, bytes, bytes_))
    throw data_error("the data is truncated: bytes " + std::to_string(offset) + " and " + std::to_string(bytes) + " more are wanted of " +
                         std::to_string(bytes_),
                     where_, "copy the checkpoint again, completely");
}

void ByteSlice::read(int64_t offset, void* out, int64_t bytes) const {
  check_inside(offset, bytes);
  if (bytes == 0) return;
  if (memory_)
    std::memcpy(out, memory_->data() + offset, static_cast<size_t>(bytes));
  else if (file_->read(offset_ + offset, static_cast<std::byte*>(out), bytes) != bytes)
    throw data_error("the file became shorter while it was read", where_, "leave the checkpoint alone while it is read");
}

std::string ByteSlice::text(int64_t offset, int64_t bytes) const {
  check_inside(offset, bytes);
  std::string text(static_cast<size_t>(bytes), '\0');
  read(offset, text.data(), bytes);
  return text;
}

}  // namespace ptq::checkpoint
