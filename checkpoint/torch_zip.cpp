#include "checkpoint/torch_zip.h"

#include <cstring>
#include <limits>
#include <string_view>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr uint32_t kLocalHeader = 0x04034b50, kDirectoryEntry = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr int64_t kLocalHeaderBytes = 30, kDirectoryEntryBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20;
/// In fields that a zip64 record replaces.
constexpr uint64_t kMax16 = 0xffff, kMax32 = 0xffffffff;
/// Encrypted, strongly encrypted, directory masked.
constexpr uint64_t kEncryptedFlags = 0x0001 | 0x0040 | 0x2000;
/// A checkpoint has some hundred bytes of directory a tensor: this is room for millions.
constexpr uint64_t kMaxDirectoryBytes = uint64_t{1} << 30;
constexpr size_t kMaxNameBytes = 4096;

/// The little-endian number of `bytes` bytes at `at` of a record.
uint64_t field(std::string_view record, size_t at, size_t bytes) {
  require(at + bytes <= record.size(), "a field outside its zip record");
  uint64_t value = 0;
  std::memcpy(&value, record.data() + at, bytes);
  return value;
}

[[noreturn]] void fail(const ByteSlice& slice, const std::string& what) {
  throw data_error("the zip file of torch.save cannot be read: " + what, slice.where(), "copy or download the checkpoint again");
}

/// Replaces sizes and offset that are all ones by those of the zip64 extra field (id 1), which has just these, in this order.
void read_extra64(const ByteSlice& slice, std::string_view extra, uint64_t& whole, uint64_t& stored, uint64_t& offset) {
  while (extra.size() >= 4) {
    const uint64_t id = field(extra, 0, 2), bytes = field(extra, 2, 2);
    if (bytes > extra.size() - 4) fail(slice, "an extra field is longer than its entry");
    std::string_view values = extra.substr(4, bytes);
    extra.remove_prefix(4 + bytes);
    if (id != 1) continue;
    for (uint64_t* const value : {&whole, &stored, &offset}) {
      if (*value != kMax32) continue;
      if (values.size() < 8) fail(slice, "a zip64 field is too short");
      *value = field(values, 0, 8);
      values.remove_prefix(8);
    }
    return;
  }
}
}  // namespace

bool TorchZip::accepts(const ByteSlice& slice) { return slice.bytes() >= 4 && slice.text(0, 4) == "PK\3\4"; }

TorchZip::TorchZip(const ByteSlice& slice) {
  read_directory(slice, find_directory(slice));
  check_is_torch(slice);
}

/// torch writes no comment behind the end record, so it is the last thing of the slice.
TorchZip::Directory TorchZip::find_directory(const ByteSlice& slice) {
  if (slice.bytes() < kEndBytes) fail(slice, "it is too short");
  int64_t end_at = slice.bytes() - kEndBytes;
  const std::string end = slice.text(end_at, kEndBytes);
  if (field(end, 0, 4) != kEnd || field(end, 20, 2) != 0) fail(slice, "its end is not a zip's, so it is truncated or was changed");
  Directory directory{field(end, 10, 2), field(end, 12, 4), field(end, 16, 4)};
  if (field(end, 4, 2) != 0 || field(end, 6, 2) != 0 || field(end, 8, 2) != directory.entries)
    fail(slice, "it is spread over several disks");

  const bool has_locator = end_at >= kLocator64Bytes && slice.text(end_at - kLocator64Bytes, 4) == std::string("PK\6\7");
  if (has_locator) {
    const std::string locator = slice.text(end_at - kLocator64Bytes, kLocator64Bytes);
    end_at -= kLocator64Bytes;
    const uint64_t at = field(locator, 8, 8);
    if (at > static_cast<uint64_t>(end_at) || static_cast<uint64_t>(end_at) - at < static_cast<uint64_t>(kEnd64Bytes))
      fail(slice, "its zip64 end record lies outside of it");
    end_at = static_cast<int64_t>(at);
    const std::string end64 = slice.text(end_at, kEnd64Bytes);
    if (field(end64, 0, 4) != kEnd64) fail(slice, "its zip64 end record is not where it should be");
    directory = {field(end64, 32, 8), field(end64, 40, 8), field(end64, 48, 8)};
    if (field(locator, 4, 4) != 0 || field(locator, 16, 4) > 1 || field(end64, 16, 4) != 0 || field(end64, 20, 4) != 0 ||
        field(end64, 24, 8) != directory.entries)
      fail(slice, "it is spread over several disks");
  } else if (directory.entries == kMax16 || directory.bytes == kMax32 || directory.offset == kMax32) {
    fail(slice, "its zip64 end record is missing");
  }
  const auto limit = static_cast<uint64_t>(end_at);
  if (directory.offset > limit || directory.bytes > limit - directory.offset) fail(slice, "its directory lies outside of it");
  if (directory.bytes > kMaxDirectoryBytes || directory.entries > directory.bytes / kDirectoryEntryBytes)
    fail(slice, "its directory has a size that cannot be right");
  return directory;
}

void TorchZip::read_directory(const ByteSlice& slice, const Directory& directory) {
  directory_offset_ = static_cast<int64_t>(directory.offset);
  const std::string text = slice.text(directory_offset_, static_cast<int64_t>(directory.bytes));
  std::string_view rest = text;
  entries_.reserve(directory.entries);
  for (uint64_t i = 0; i < directory.entries; ++i) {
    if (rest.size() < kDirectoryEntryBytes || field(rest, 0, 4) != kDirectoryEntry) fail(slice, "its directory is damaged");
    const uint64_t flags = field(rest, 8, 2), method = field(rest, 10, 2), disk = field(rest, 34, 2);
    uint64_t stored = field(rest, 20, 4), whole = field(rest, 24, 4), offset = field(rest, 42, 4);
    const size_t name_bytes = field(rest, 28, 2), extra_bytes = field(rest, 30, 2), comment_bytes = field(rest, 32, 2);
    if (rest.size() - kDirectoryEntryBytes < name_bytes + extra_bytes + comment_bytes) fail(slice, "its directory is damaged");
    std::string name(rest.substr(kDirectoryEntryBytes, name_bytes));
    if (name.empty() || name_bytes > kMaxNameBytes || name.find('\0') != std::string::npos) fail(slice, "an entry has no proper name");
    read_extra64(slice, rest.substr(kDirectoryEntryBytes + name_bytes, extra_bytes), whole, stored, offset);
    rest.remove_prefix(kDirectoryEntryBytes + name_bytes + extra_bytes + comment_bytes);

    if ((flags & kEncryptedFlags) != 0) fail(slice, "entry " + quoted_name(name) + " is encrypted");
    if (method != 0 || stored != whole) fail(slice, "entry " + quoted_name(name) + " is compressed, which torch.save never does");
    if (disk != 0) fail(slice, "it is spread over several disks");
    if (offset > directory.offset || stored > directory.offset - offset || directory.offset - offset - stored < kLocalHeaderBytes)
      fail(slice, "entry " + quoted_name(name) + " lies outside of it");
    const auto [place, is_new] = entries_.emplace(std::move(name), Entry{static_cast<int64_t>(offset), static_cast<int64_t>(stored)});
    if (!is_new) fail(slice, "entry " + quoted_name(place->first) + " is there twice");
  }
}

void TorchZip::check_is_torch(const ByteSlice& slice) {
  constexpr std::string_view kPickle = "/data.pkl";
  for (const auto& [name, entry] : entries_) {
    if (!name.ends_with(kPickle)) continue;
    if (!root_.empty()) fail(slice, "it has more than one data.pkl");
    root_ = name.substr(0, name.size() - kPickle.size() + 1);
  }
  if (root_.empty()) fail(slice, "it has no data.pkl, so it is no file of torch.save");
  for (const auto& [name, entry] : entries_)
    if (name == root_ + "constants.pkl" || name.starts_with(root_ + "code/"))
      throw data_error("a TorchScript program, not a checkpoint of weights", slice.where(), "save the model's state_dict with torch.save");
  if (has("byteorder")) {
    const Place at = place(slice, "byteorder");
    if (at.bytes != 6 || slice.text(at.offset, at.bytes) != "little")
      throw data_error("its numbers are not little-endian", slice.where(), "save the checkpoint on a little-endian machine");
  }
}

TorchZip::Place TorchZip::place(const ByteSlice& slice, const std::string& name) const {
  const auto found = entries_.find(root_ + name);
  if (found == entries_.end()) fail(slice, "it has no entry " + quoted_name(root_ + name));
  const Entry& entry = found->second;
  const std::string header = slice.text(entry.header, kLocalHeaderBytes);
  if (field(header, 0, 4) != kLocalHeader) fail(slice, "entry " + quoted_name(name) + " is not where the directory says");
  const auto name_bytes = static_cast<int64_t>(field(header, 26, 2)), extra_bytes = static_cast<int64_t>(field(header, 28, 2));
  const int64_t begin = entry.header + kLocalHeaderBytes + name_bytes + extra_bytes;
  if (begin > directory_offset_ || entry.bytes > directory_offset_ - begin)
    fail(slice, "entry " + quoted_name(name) + " lies outside of it");
  if ((field(header, 6, 2) & kEncryptedFlags) != 0 || field(header, 8, 2) != 0 ||
      slice.text(entry.header + kLocalHeaderBytes, name_bytes) != found->first)
    fail(slice, "the two headers of entry " + quoted_name(name) + " disagree");
  return {begin, entry.bytes};
}

}  // namespace ptq::checkpoint
