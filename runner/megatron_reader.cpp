#include "runner/megatron_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "checkpoint/hf_shards.h"
#include "kernels/core/error.h"
#include "runner/megatron_model.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;
using checkpoint::TensorEntry;

class MegatronReader : public checkpoint::Reader {
 public:
  MegatronReader(std::unique_ptr<checkpoint::ArrayStore> store, std::string format, std::string config_folder,
                 std::map<std::string, MappedTensor> mapped, std::vector<std::string> ignored)
      : store_(std::move(store)),
        format_(std::move(format)),
        config_folder_(std::move(config_folder)),
        mapped_(std::move(mapped)),
        ignored_(std::move(ignored)) {
    folder_ = store_->path();
    for (const auto& [name, tensor] : mapped_) {
      // Loaders read in the order of file and offset: arrays one after the other, each from its beginning.
      const checkpoint::ArrayEntry& array = *tensor.rows.front().array;
      tensors_[name] = {name,
                        tensor.dtype,
                        tensor.shape,
                        array.name,
                        first_element(tensor.rows.front()) * dtype_bytes(array.dtype),
                        element_count(tensor.shape) * dtype_bytes(tensor.dtype)};
    }
  }

  std::string format() const override { return format_; }
  std::vector<std::string> files() const override { return store_->files(); }
  std::vector<std::string> ignored() const override { return ignored_; }
  std::vector<std::string> companion_files() const override { return checkpoint::hf_companion_files(config_folder_); }

  void read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override {
    require(0 <= begin && begin <= end && end <= tensor.rows(), "rows wanted outside the tensor");
    const MappedTensor& mapped = mapped_.at(tensor.name);
    int64_t first = 0;
    for (const SourceRows& rows : mapped.rows) {
      const int64_t from = std::max(begin, first), to = std::min(end, first + rows.count);
      if (from < to) read_run(mapped, rows, from - first, to - from, out + (from - begin) * tensor.row_bytes());
      first += rows.count;
    }
    bytes_read_ += (end - begin) * tensor.row_bytes();
  }

 private:
  static int64_t first_element(const SourceRows& rows) {
    int64_t element = 0;
    for (size_t d = 0; d < rows.array->shape.size(); ++d)
      element = element * rows.array->shape[d] + (d < rows.index.size() ? rows.index[d] : d == rows.index.size() ? rows.begin : 0);
    return element;
  }

  /// Rows begin .. begin + count of one run.
  void read_run(const MappedTensor& tensor, const SourceRows& rows, int64_t begin, int64_t count, std::byte* out) const {
    Shape from = rows.index, sizes(rows.index.size(), 1);
    for (size_t d = rows.index.size(); d < rows.array->shape.size(); ++d) {
      const bool is_rows = d == rows.index.size();
      from.push_back(is_rows ? rows.begin + begin : 0);
      sizes.push_back(is_rows ? count : rows.array->shape[d]);
    }
    if (tensor.dtype == rows.array->dtype) {
      store_->read_box(*rows.array, from, sizes, out);
      return;
    }
    require(rows.array->dtype == DType::kF32, "only F32 is rounded");
    std::vector<float> values(static_cast<size_t>(element_count(sizes)));
    store_->read_box(*rows.array, from, sizes, reinterpret_cast<std::byte*>(values.data()));
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t bits = tensor.dtype == DType::kBF16 ? to_bf16(values[i]).bits : to_f16(values[i]).bits;
      std::memcpy(out + i * sizeof(bits), &bits, sizeof(bits));
    }
  }

  std::unique_ptr<checkpoint::ArrayStore> store_;
  std::string format_, config_folder_;
  std::map<std::string, MappedTensor> mapped_;
  std::vector<std::string> ignored_;
};

}  // namespace

std::unique_ptr<checkpoint::Reader> open_megatron(std::unique_ptr<checkpoint::ArrayStore> store, const std::string& format,
                                                  const std::string& config_folder, const Json& config, const layers::ModelSpec& spec) {
  MegatronArrays arrays(*store);
  std::map<std::string, MappedTensor> mapped = map_megatron_model(arrays, config, config_folder, spec);
  return std::make_unique<MegatronReader>(std::move(store), format, config_folder, std::move(mapped), arrays.ignored());
}

}  // namespace ptq::runner
