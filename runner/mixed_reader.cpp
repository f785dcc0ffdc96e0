#include "runner/mixed_reader.h"

namespace ptq::runner {

namespace {

class MixedReader : public checkpoint::Reader {
 public:
  explicit MixedReader(const std::map<std::string, const checkpoint::Reader*>& readers) : readers_(readers) {
    for (const auto& [name, reader] : readers_) {
      tensors_[name] = reader->at(name);
      if (folder_.empty()) folder_ = reader->folder();
    }
  }

  std::string format() const override { return readers_.begin()->second->format(); }
  std::vector<std::string> companion_files() const override { return readers_.begin()->second->companion_files(); }
  void read_rows(const checkpoint::TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override {
    readers_.at(tensor.name)->read_rows(tensor, begin, end, out);
    bytes_read_ += (end - begin) * tensor.row_bytes();
  }

 private:
  std::map<std::string, const checkpoint::Reader*> readers_;
};

}  // namespace

std::unique_ptr<checkpoint::Reader> open_mixed(const std::map<std::string, const checkpoint::Reader*>& tensors) {
  return std::make_unique<MixedReader>(tensors);
}

}  // namespace ptq::runner
