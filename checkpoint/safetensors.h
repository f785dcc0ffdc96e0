#pragma once
// The safetensors container: its header read with every refusal of a safe reader, and written. Knows no tensor's meaning.

#include <map>
#include <string>
#include <vector>

#include "checkpoint/reader.h"

namespace ptq::checkpoint {

struct SafetensorsHeader {
  int64_t data_begin = 0;  ///< 8 + header length
  int64_t file_bytes = 0;
  std::vector<TensorEntry> tensors;  ///< by ascending offset; `offset` is absolute in the file
  std::map<std::string, std::string> metadata;
};

/// Reads and checks one file's header. Throws a data Error naming file and tensor for: fewer than 8 bytes, a header longer than
/// 100,000,000 bytes or than the file, bad UTF-8 or JSON or too deep nesting, an unknown dtype, metadata that is not a string, duplicate
/// keys, names with NUL or over 4096 bytes, more than 8 dimensions, sizes that overflow or disagree with shape and dtype, tensors that
/// overlap, leave a gap, or do not end exactly at the end of the file.
SafetensorsHeader read_safetensors_header(const std::string& path);

/// What a tensor of a file to be written is.
struct OutputTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t bytes() const { return element_count(shape) * dtype_bytes(dtype); }
};

/// The first bytes of a file holding `tensors` in the given order, padded with spaces to a multiple of 8, metadata {"format":"pt"}.
std::string make_safetensors_header(const std::vector<OutputTensor>& tensors);

/// Writes a small file in one go (logits, test data). `data[i]` is tensors[i]'s memory.
void write_safetensors(const std::string& path, const std::vector<OutputTensor>& tensors, const std::vector<const void*>& data);

}  // namespace ptq::checkpoint
