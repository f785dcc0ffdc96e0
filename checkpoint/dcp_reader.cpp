#include "checkpoint/dcp_reader.h"

#include <algorithm>
#include <array>

#include "checkpoint/files.h"
#include "checkpoint/hf_shards.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
/// How the names of Hugging Face's causal models begin.
constexpr std::array<std::string_view, 3> kBeginnings{"model.", "lm_head.", "backbone."};
/// What a training script may have put in front of them: the key of the model in its state dict, a wrapper around the model, both.
constexpr std::array<std::string_view, 4> kPrefixes{"model.", "module.", "model.module.", "state_dict."};

bool is_hf_name(std::string_view name) {
  return std::any_of(kBeginnings.begin(), kBeginnings.end(), [&](std::string_view beginning) { return name.starts_with(beginning); });
}
}  // namespace

bool DcpReader::accepts(const std::string& path) {
  return exists(path + "/" + TorchDistStore::kMetadata) && !exists(path + "/metadata.json");
}

std::unique_ptr<Reader> DcpReader::open(const std::string& folder) { return std::unique_ptr<Reader>(new DcpReader(folder)); }

/// A prefix counts where what follows it is a Hugging Face name: "model.model.layers..." has one, "model.layers..." has none. What does not
/// have it then (an optimizer, a second model) does not belong to the model.
DcpReader::DcpReader(const std::string& folder) : store_(TorchDistStore::open(folder_files(folder), folder)) {
  folder_ = folder;
  bool has_hf_names = false;
  for (const auto& [name, array] : store_->arrays()) {
    has_hf_names = has_hf_names || is_hf_name(name);
    for (const std::string_view prefix : kPrefixes)
      if (name.starts_with(prefix) && is_hf_name(std::string_view(name).substr(prefix.size())) && prefix.size() > prefix_.size())
        prefix_ = prefix;
  }
  if (!has_hf_names && prefix_.empty())
    throw data_error("no array of this distributed checkpoint has the name of a Hugging Face model's weight" +
                         (store_->arrays().empty() ? "" : ": there is " + quoted_name(store_->arrays().begin()->first)),
                     folder_, "save the state dict of a Hugging Face model, alone or under the key 'model'");
  ignored_ = store_->left_out();
  for (const auto& [name, array] : store_->arrays()) {
    if (!name.starts_with(prefix_) || name.starts_with("optim.")) {
      ignored_.push_back(name);
      continue;
    }
    const auto [file, offset] = store_->place(array);
    const int64_t bytes = element_count(array.shape) * dtype_bytes(array.dtype);
    const std::string own = name.substr(prefix_.size());
    tensors_.emplace(own, TensorEntry{own, array.dtype, array.shape, file, offset, bytes});
  }
  std::sort(ignored_.begin(), ignored_.end());
}

void DcpReader::read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const {
  require(0 <= begin && begin <= end && end <= tensor.rows(), "rows wanted outside the tensor");
  const auto found = store_->arrays().find(prefix_ + tensor.name);
  require(found != store_->arrays().end(), "rows wanted of a tensor of another checkpoint");
  if (begin == end) return;
  Shape first(tensor.shape.size(), 0), sizes = tensor.shape;
  if (!sizes.empty()) {
    first[0] = begin;
    sizes[0] = end - begin;
  }
  store_->read_box(found->second, first, sizes, out);
  bytes_read_ += (end - begin) * tensor.row_bytes();
}

std::vector<std::string> DcpReader::companion_files() const { return hf_companion_files(folder_); }

}  // namespace ptq::checkpoint
