#include "checkpoint/hf_torch_reader.h"

#include <unordered_map>
#include <utility>

#include "checkpoint/hf_shards.h"
#include "checkpoint/tensor_name.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

bool HfTorchReader::accepts(const std::string& path) { return has_hf_shards(path, kTorchNames); }

std::unique_ptr<Reader> HfTorchReader::open(const std::string& folder) {
  std::unique_ptr<HfTorchReader> reader(new HfTorchReader(folder));  // make_unique cannot reach the private constructor
  for (const auto& [file, wanted] : find_hf_shards(folder, kTorchNames)) reader->add_file(file, wanted ? &*wanted : nullptr);
  return reader;
}

HfTorchReader::HfTorchReader(const std::string& folder) : open_(folder) { folder_ = folder; }

ByteSlice HfTorchReader::slice(const std::string& file) const {
  auto opened = open_.open(file);
  const int64_t bytes = opened->bytes();
  return {std::move(opened), open_.path(file), 0, bytes};
}

/// Takes over the tensors of one file: all of them, or those the index wants from it. What is no tensor is no weight.
void HfTorchReader::add_file(const std::string& file, const std::vector<std::string>* wanted) {
  const TorchFile torch(slice(file));
  const std::string& path = torch.slice().where();
  std::unordered_map<std::string, PickleValue> held;
  for (const auto& [key, value] : torch.root().entries()) {
    if (!TorchFile::is_tensor(value)) continue;
    std::string name(key.text().value_or(""));
    if (!is_tensor_name(name)) throw data_error("the file holds a tensor under a key that cannot be a name: " + quoted_name(name), path);
    const auto [place, is_new] = held.emplace(std::move(name), value);
    if (!is_new) throw data_error("tensor " + quoted_name(place->first) + " is there twice", path);
  }
  if (held.empty())
    throw data_error("the file holds no tensors: it is no state dict", path, "save the model's weights with save_pretrained");
  const auto add = [&](const std::string& name, const PickleValue& value) {
    TorchTensor tensor = torch.tensor(value, name);
    const TensorEntry entry{name, tensor.dtype, tensor.shape, file, tensor.offset, tensor.bytes()};
    const auto [place, is_new] = tensors_.emplace(name, entry);
    if (!is_new) throw data_error("tensor " + quoted_name(name) + " is in two files: " + place->second.file + " and " + file, folder_);
    stored_.emplace(name, std::move(tensor));
  };
  if (!wanted) {
    for (const auto& [name, value] : held) add(name, value);
    return;
  }
  for (const std::string& name : *wanted) {
    const auto found = held.find(name);
    if (found == held.end())
      throw data_error("the index says tensor " + quoted_name(name) + " is in this file, but it is not", path,
                       "the index and the shards are of different downloads: download the checkpoint again");
    add(name, found->second);
  }
}

void HfTorchReader::read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const {
  const auto found = stored_.find(tensor.name);
  require(found != stored_.end(), "rows wanted of a tensor of another checkpoint");
  read_torch_rows(slice(tensor.file), found->second, begin, end, out);
  bytes_read_ += (end - begin) * tensor.row_bytes();
}

std::vector<std::string> HfTorchReader::companion_files() const { return hf_companion_files(folder_); }

}  // namespace ptq::checkpoint
