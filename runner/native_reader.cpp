#include "runner/native_reader.h"

#include <cmath>
#include <cstring>

#include "kernels/native_formats.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;
using checkpoint::Reader;
using checkpoint::TensorEntry;

int64_t blocks(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

Json quantization_words(const Json& config) {
  for (const char* key : {"quantization_config", "compression_config"})
    if (config.contains(key) && config.at(key).is_object()) return config.at(key);
  if (config.contains("text_config") && config.at("text_config").is_object()) return quantization_words(config.at("text_config"));
  return Json::object();
}

std::string word(const Json& words, const char* key) {
  return words.contains(key) && words.at(key).is_string() ? words.at(key).get<std::string>() : "";
}

class NativeReader : public Reader {
 public:
  NativeReader(std::unique_ptr<Reader> inner, kernels::BlockFp8 blocks) : inner_(std::move(inner)), blocks_(blocks) {
    folder_ = inner_->folder();
    tensors_ = inner_->tensors();
  }

  std::string format() const override { return inner_->format(); }
  std::vector<std::string> companion_files() const override { return inner_->companion_files(); }

  /// Shows codes [O, C] with their grid of scales as one BF16 tensor of the same name.
  void add_block_fp8(const std::string& name) {
    const TensorEntry codes = inner_->at(name);
    const std::string scale_name = name + "_scale_inv";
    const TensorEntry* scales = inner_->find(scale_name);
    if (!scales)
      throw data_error("tensor " + name + " is stored in FP8 blocks, but its scales " + scale_name + " are not in the checkpoint",
                       folder_ + "/" + codes.file, "check that the download is complete");
    const Shape grid{blocks(codes.shape[0], blocks_.block_rows), blocks(codes.shape[1], blocks_.block_columns)};
    if (scales->shape != grid || scales->dtype != DType::kF32)
      throw data_error("tensor " + scale_name + " is " + std::string(dtype_name(scales->dtype)) + " " + to_string(scales->shape) +
                           ", but " + name + " " + to_string(codes.shape) + " in blocks of " + std::to_string(blocks_.block_rows) + " x " +
                           std::to_string(blocks_.block_columns) + " needs F32 " + to_string(grid),
                       folder_ + "/" + scales->file, "weights and scales must be of the same checkpoint");
    show(name, codes, {codes, *scales}, codes.shape);
    tensors_.erase(scale_name);
  }

  /// Shows `name`_blocks [E, O, C/32, 16] and `name`_scales [E, O, C/32] as one BF16 tensor [E, C, O].
  void add_mxfp4(const std::string& name) {
    const TensorEntry codes = inner_->at(name + "_blocks");
    const TensorEntry& scales = inner_->at(name + "_scales");
    if (codes.shape.size() != 4 || codes.shape[3] != 16 || codes.dtype != DType::kU8)
      throw data_error("tensor " + codes.name + " is " + to_string(codes.shape) + ", not U8 [experts, rows, columns/32, 16]",
                       folder_ + "/" + codes.file);
    const Shape wanted{codes.shape[0], codes.shape[1], codes.shape[2]};
    if (scales.shape != wanted || scales.dtype != DType::kU8)
      throw data_error("tensor " + scales.name + " is " + std::string(dtype_name(scales.dtype)) + " " + to_string(scales.shape) +
                           ", but its blocks need U8 " + to_string(wanted),
                       folder_ + "/" + scales.file, "weights and scales must be of the same checkpoint");
    show(name, codes, {codes, scales}, {codes.shape[0], codes.shape[2] * 32, codes.shape[1]});
    tensors_.erase(name + "_blocks");
    tensors_.erase(name + "_scales");
  }

  void read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override {
    const auto stored = stored_.find(tensor.name);
    if (stored == stored_.end())
      read_inner(tensor, begin, end, out);
    else if (tensor.shape.size() == 2)
      read_block_fp8(stored->second, begin, end, reinterpret_cast<uint16_t*>(out));
    else
      read_mxfp4(stored->second, begin, end, reinterpret_cast<uint16_t*>(out));
  }

 private:
  struct Stored {
    TensorEntry codes, scales;
  };

  void show(const std::string& name, const TensorEntry& codes, Stored stored, Shape shape) {
    TensorEntry entry = codes;
    entry.name = name;
    entry.dtype = DType::kBF16;
    entry.shape = std::move(shape);
    entry.bytes = element_count(entry.shape) * 2;
    tensors_[name] = entry;
    stored_.emplace(name, std::move(stored));
  }

  void read_inner(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const {
    inner_->read_rows(tensor, begin, end, out);
    bytes_read_ += (end - begin) * tensor.row_bytes();
  }

  std::vector<std::byte> read_inner(const TensorEntry& tensor, int64_t begin, int64_t end) const {
    std::vector<std::byte> bytes(static_cast<size_t>((end - begin) * tensor.row_bytes()));
    read_inner(tensor, begin, end, bytes.data());
    return bytes;
  }

  void read_block_fp8(const Stored& stored, int64_t begin, int64_t end, uint16_t* out) const {
    const int64_t columns = stored.codes.shape[1], step = blocks_.block_rows * 16;
    for (int64_t row = begin; row < end; row += step) {
      const int64_t last = std::min(end, row + step);
      const auto codes = read_inner(stored.codes, row, last);
      const auto bytes = read_inner(stored.scales, row / blocks_.block_rows, blocks(last, blocks_.block_rows));
      std::vector<float> scales(bytes.size() / sizeof(float));
      std::memcpy(scales.data(), bytes.data(), bytes.size());
      for (const float scale : scales)
        if (!std::isfinite(scale))
          throw data_error("NaN or Inf in the scales: tensor " + stored.scales.name, folder_ + "/" + stored.scales.file,
                           "the checkpoint is damaged: download it again");
      kernels::BlockFp8 shape = blocks_;
      shape.columns = columns;
      kernels::decode_block_fp8(reinterpret_cast<const uint8_t*>(codes.data()), row, last - row, scales.data(), shape,
                                out + (row - begin) * columns);
    }
  }

  void read_mxfp4(const Stored& stored, int64_t begin, int64_t end, uint16_t* out) const {
    const int64_t rows = stored.codes.shape[1], columns = stored.codes.shape[2] * 32;
    for (int64_t e = begin; e < end; ++e) {
      const auto codes = read_inner(stored.codes, e, e + 1), scales = read_inner(stored.scales, e, e + 1);
      kernels::decode_mxfp4_transposed(reinterpret_cast<const uint8_t*>(codes.data()), reinterpret_cast<const uint8_t*>(scales.data()),
                                       rows, columns, out + (e - begin) * rows * columns);
    }
  }

  std::unique_ptr<Reader> inner_;
  kernels::BlockFp8 blocks_;
  std::map<std::string, Stored> stored_;
};

kernels::BlockFp8 block_shape(const Json& words, const std::string& folder) {
  constexpr int64_t kMost = 1 << 20;
  const Json& size = words.at("weight_block_size");
  const auto is_extent = [](const Json& value) {
    return value.is_number_integer() && value.get<int64_t>() >= 1 && value.get<int64_t>() <= kMost;
  };
  if (!size.is_array() || size.size() != 2 || !is_extent(size[0]) || !is_extent(size[1]))
    throw data_error("config key 'quantization_config.weight_block_size' is not two integers from 1 to " + std::to_string(kMost),
                     folder + "/config.json", "take the config.json that was published with this checkpoint");
  kernels::BlockFp8 shape;
  shape.block_rows = size[0].get<int64_t>();
  shape.block_columns = size[1].get<int64_t>();
  return shape;
}

}  // namespace

std::string native_quantization(const Json& config) {
  const Json words = quantization_words(config);
  const std::string method = word(words, "quant_method");
  if (method == "fp8" && words.contains("weight_block_size") && !words.at("weight_block_size").is_null()) return "fp8";
  return method == "mxfp4" ? "mxfp4" : "";
}

std::string quantized_by(const Json& config) {
  const Json words = quantization_words(config);
  if (words.empty()) return "";
  const std::string method = word(words, "quant_method"), algo = word(words, "quant_algo"), format = word(words, "format");
  const std::string detail = algo.empty() ? format : algo;
  return (method.empty() ? "an unnamed tool" : method) + (detail.empty() ? "" : " (" + detail + ")");
}

std::unique_ptr<Reader> open_native(std::unique_ptr<Reader> reader, const Json& config, const layers::ModelSpec& spec) {
  const std::string method = native_quantization(config);
  if (method.empty()) return reader;
  kernels::BlockFp8 shape;
  if (method == "fp8") shape = block_shape(quantization_words(config), reader->folder());
  const Reader& raw = *reader;
  auto native = std::make_unique<NativeReader>(std::move(reader), shape);
  for (const auto& layer : spec.layers)
    for (const auto& linear : layer.linears) {
      const std::string name = linear.tensor(".weight");
      const TensorEntry* entry = raw.find(name);
      if (method == "fp8" && entry && entry->dtype == DType::kF8E4M3 && entry->shape.size() == 2) native->add_block_fp8(name);
      if (method == "mxfp4" && !entry && raw.find(name + "_blocks")) native->add_mxfp4(name);
    }
  return native;
}

}  // namespace ptq::runner
