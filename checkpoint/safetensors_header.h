#pragma once
// The JSON text of a safetensors header taken apart: what it says, tensor by tensor. Whether that fits the file is safetensors.cpp's part.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptq::checkpoint {

struct HeaderTensor {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;         ///< at most 8
  std::vector<uint64_t> data_offsets;  ///< exactly 2: begin and end, from the first byte after the header
};

struct HeaderText {
  std::vector<HeaderTensor> tensors;  ///< in the order of the text
  std::map<std::string, std::string> metadata;
};

/// Parses without building a tree, so that memory stays in proportion to the text. `path` is for messages.
/// Throws a data Error for: bad UTF-8 or JSON, too deep nesting, duplicate keys, names with NUL or over 4096 bytes, metadata that is not a
/// string, entries that lack a field or have one of the wrong kind, more than 8 dimensions, numbers that are not unsigned 64-bit integers.
HeaderText parse_header_text(const std::string& text, const std::string& path);

}  // namespace ptq::checkpoint
