#include "checkpoint/output_layout.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
std::string five_digits(size_t number) {
  const std::string digits = std::to_string(number);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}
}  // namespace

OutputLayout OutputLayout::plan(std::vector<OutputTensor> tensors, int64_t max_shard_size) {
  require(max_shard_size > 0, "max_shard_size must be positive");
  OutputLayout layout;
  layout.shards_.emplace_back();
  int64_t filled = 0;
  for (OutputTensor& tensor : tensors) {
    if (!layout.shards_.back().tensors.empty() && tensor.bytes() > max_shard_size - filled) {
      layout.shards_.emplace_back();
      filled = 0;
    }
    filled += tensor.bytes();
    layout.tensor_bytes_ += tensor.bytes();
    layout.shards_.back().tensors.push_back(std::move(tensor));
  }

  const size_t count = layout.shards_.size();
  for (size_t i = 0; i < count; ++i) {
    ShardFile& shard = layout.shards_[i];
    shard.name = count == 1 ? "model.safetensors" : "model-" + five_digits(i + 1) + "-of-" + five_digits(count) + ".safetensors";
    // Wide elements first: every tensor then lies at a multiple of its element's width, as the header ends on a multiple of 8.
    std::sort(shard.tensors.begin(), shard.tensors.end(), [](const OutputTensor& a, const OutputTensor& b) {
      return std::pair(-dtype_bytes(a.dtype), std::string_view(a.name)) < std::pair(-dtype_bytes(b.dtype), std::string_view(b.name));
    });
    shard.header = make_safetensors_header(shard.tensors);
    shard.bytes = static_cast<int64_t>(shard.header.size());
    for (const OutputTensor& tensor : shard.tensors) {
      const bool is_new = layout.places_.emplace(tensor.name, TensorPlace{static_cast<int>(i), shard.bytes, tensor.bytes()}).second;
      if (!is_new) throw bug("output tensor '" + tensor.name + "' is there twice");
      shard.bytes += tensor.bytes();
    }
  }
  return layout;
}

const TensorPlace& OutputLayout::place(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) throw bug("tensor '" + name + "' has no place in the output");
  return found->second;
}

std::string OutputLayout::index_json() const {
  if (shards_.size() == 1) return "";
  nlohmann::json index;
  index["metadata"]["total_size"] = tensor_bytes_;
  auto& map = index["weight_map"] = nlohmann::json::object();
  for (const auto& [name, place] : places_) map[name] = shards_[static_cast<size_t>(place.shard)].name;
  return index.dump(2) + "\n";
}

}  // namespace ptq::checkpoint
