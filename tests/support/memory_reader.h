#pragma once
// A checkpoint of tensors in memory.

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/reader.h"

namespace ptq::test {

class MemoryReader : public checkpoint::Reader {
 public:
  MemoryReader() { folder_ = "memory"; }
  /// Replaces one of the same name.
  void add(const std::string& name, const Tensor& tensor, const std::string& file = "model.safetensors") {
    tensors_[name] = {name, tensor.dtype(), tensor.shape(), file, 0, tensor.bytes()};
    contents_[name] = tensor;
  }
  void remove(const std::string& name) { tensors_.erase(name); }

  std::string format() const override { return "memory"; }
  std::vector<std::string> companion_files() const override { return {"config.json"}; }
  void read_rows(const checkpoint::TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override {
    require(0 <= begin && begin <= end && end <= tensor.rows(), "rows that the tensor does not have");
    const std::byte* const from = contents_.at(tensor.name).raw();
    std::copy(from + begin * tensor.row_bytes(), from + end * tensor.row_bytes(), out);
    bytes_read_ += (end - begin) * tensor.row_bytes();
  }

 private:
  std::map<std::string, Tensor> contents_;
};

}  // namespace ptq::test
