#include "checkpoint/safetensors.h"

#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <tuple>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/safetensors_header.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
static_assert(std::endian::native == std::endian::little, "safetensors is little-endian, and this program copies its numbers as they are");

/// The reference library's own limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr const char* kDownloadAgain = "the file is damaged or cut short: download it again";

/// Turns a tensor as its header describes it into an entry, checking it against itself and against the bytes the file has.
TensorEntry checked_entry(HeaderTensor&& tensor, const std::string& path, int64_t data_begin, int64_t data_bytes) {
  const std::string label = "tensor " + quoted_name(tensor.name);
  TensorEntry entry;
  const auto dtype = dtype_from_name(tensor.dtype);
  if (!dtype) throw data_error(label + " has the unknown dtype " + quoted_name(tensor.dtype), path);
  entry.dtype = *dtype;

  int64_t expected = dtype_bytes(*dtype);
  bool fits = true;
  for (const uint64_t extent : tensor.shape) {
    fits = fits && extent <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    fits = fits && !__builtin_mul_overflow(expected, static_cast<int64_t>(extent), &expected);
    entry.shape.push_back(static_cast<int64_t>(extent));
  }
  if (!fits) throw data_error(label + " has a shape whose size in bytes overflows 64 bits", path, kDownloadAgain);
  const auto [begin, end] = std::pair(tensor.data_offsets[0], tensor.data_offsets[1]);
  if (begin > end) throw data_error(label + " ends before it begins", path, kDownloadAgain);
  if (end - begin != static_cast<uint64_t>(expected))
    throw data_error(label + " has " + std::to_string(end - begin) + " bytes, but shape " + to_string(entry.shape) + " of " + tensor.dtype +
                         " needs " + std::to_string(expected),
                     path, kDownloadAgain);
  if (end > static_cast<uint64_t>(data_bytes))
    throw data_error("the file is truncated: " + label + " ends at byte " + std::to_string(end) + " of the data, and there are only " +
                         std::to_string(data_bytes),
                     path, "download it again");
  entry.name = std::move(tensor.name);
  entry.offset = data_begin + static_cast<int64_t>(begin);
  entry.bytes = expected;
  return entry;
}

/// Refuses what a reader could be led astray with: bytes that two tensors share or that none owns.
void check_tiling(const SafetensorsHeader& header, const std::string& path) {
  int64_t at = header.data_begin;
  for (const TensorEntry& entry : header.tensors) {
    if (entry.offset < at) throw data_error("tensor " + quoted_name(entry.name) + " overlaps the one before it", path, kDownloadAgain);
    if (entry.offset > at)
      throw data_error("there is a gap of " + std::to_string(entry.offset - at) + " bytes before tensor " + quoted_name(entry.name), path,
                       kDownloadAgain);
    at += entry.bytes;
  }
  if (at != header.file_bytes)
    throw data_error("the file has " + std::to_string(header.file_bytes - at) + " bytes after its last tensor", path, kDownloadAgain);
}
}  // namespace

SafetensorsHeader read_safetensors_header(const std::string& path) {
  const Fd fd = open_file(path, O_RDONLY | O_NONBLOCK);  // a named pipe is refused below instead of waited for
  SafetensorsHeader header;
  header.file_bytes = regular_file_bytes(fd.get(), path);

  uint64_t length = 0;
  if (header.file_bytes < 8 || read_at(fd.get(), path, 0, &length, 8) != 8)
    throw data_error(
        "not a safetensors file: it has " + std::to_string(header.file_bytes) + " bytes, fewer than the 8 of the header's length", path,
        kDownloadAgain);
  if (length > kMaxHeaderBytes)
    throw data_error(
        "not a safetensors file: its header would have " + std::to_string(length) + " bytes, more than the 100,000,000 allowed", path,
        kDownloadAgain);
  if (length > static_cast<uint64_t>(header.file_bytes - 8))
    throw data_error("the file is truncated: its header has " + std::to_string(length) + " bytes, and only " +
                         std::to_string(header.file_bytes - 8) + " are there",
                     path, "download it again");
  std::string text(static_cast<size_t>(length), '\0');
  if (read_at(fd.get(), path, 8, text.data(), static_cast<int64_t>(length)) != static_cast<int64_t>(length))
    throw data_error("the file is truncated: it ends inside its header", path, "download it again");

  HeaderText parsed = parse_header_text(text, path);
  header.metadata = std::move(parsed.metadata);
  header.data_begin = 8 + static_cast<int64_t>(length);
  header.tensors.reserve(parsed.tensors.size());
  const std::string base = path.substr(path.find_last_of('/') + 1);
  for (HeaderTensor& tensor : parsed.tensors) {
    header.tensors.push_back(checked_entry(std::move(tensor), path, header.data_begin, header.file_bytes - header.data_begin));
    header.tensors.back().file = base;
  }
  // Tensors without bytes come before the tensor that begins where they lie; the name makes the order a total one.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  check_tiling(header, path);
  return header;
}

}  // namespace ptq::checkpoint
