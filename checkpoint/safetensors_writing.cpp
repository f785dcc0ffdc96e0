// The writing half of safetensors.h.

#include <fcntl.h>

#include <nlohmann/json.hpp>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/safetensors.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

std::string make_safetensors_header(const std::vector<OutputTensor>& tensors) {
  // Put together as text: an ordered JSON object looks at all its keys for each one added, and a file may hold 100,000 tensors.
  std::string text = R"({"__metadata__":{"format":"pt"})";
  int64_t at = 0;
  for (const OutputTensor& tensor : tensors) {
    text.append(",").append(nlohmann::json(tensor.name).dump()).append(R"(:{"dtype":")").append(dtype_name(tensor.dtype));
    text += R"(","shape":[)";
    for (size_t i = 0; i < tensor.shape.size(); ++i) text.append(i ? "," : "").append(std::to_string(tensor.shape[i]));
    text.append(R"(],"data_offsets":[)").append(std::to_string(at)).append(",").append(std::to_string(at + tensor.bytes())).append("]}");
    at += tensor.bytes();
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');

  std::string header(8, '\0');
  for (size_t i = 0; i < 8; ++i) header[i] = static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i));
  return header + text;
}

void write_safetensors(const std::string& path, const std::vector<OutputTensor>& tensors, const std::vector<const void*>& data) {
  require(tensors.size() == data.size(), "safetensors: as many tensors as pieces of memory");
  const std::string header = make_safetensors_header(tensors);
  const Fd fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
  write_at(fd.get(), path, 0, header.data(), static_cast<int64_t>(header.size()));
  auto at = static_cast<int64_t>(header.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    write_at(fd.get(), path, at, data[i], tensors[i].bytes());
    at += tensors[i].bytes();
  }
  sync_file(fd.get(), path);
}

}  // namespace ptq::checkpoint
