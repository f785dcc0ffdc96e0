#include "checkpoint/hf_reader.h"

#include <unordered_map>
#include <utility>

#include "checkpoint/hf_shards.h"
#include "checkpoint/safetensors.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

bool HfReader::accepts(const std::string& path) { return has_hf_shards(path); }

std::unique_ptr<Reader> HfReader::open(const std::string& folder) {
  std::unique_ptr<HfReader> reader(new HfReader(folder));  // make_unique cannot reach the private constructor
  for (const auto& [file, wanted] : find_hf_shards(folder)) reader->add_file(file, wanted ? &*wanted : nullptr);
  return reader;
}

HfReader::HfReader(const std::string& folder) { folder_ = folder; }

/// Takes over the header of one file: all tensors, or those the index wants from it. Others are left overs of a conversion: not ours.
void HfReader::add_file(const std::string& file, const std::vector<std::string>* wanted) {
  const std::string path = folder_ + "/" + file;
  SafetensorsHeader header = read_safetensors_header(path);
  files_[file].bytes = header.file_bytes;
  if (!wanted) {
    for (TensorEntry& entry : header.tensors) {
      entry.file = file;
      const std::string name = entry.name;
      const auto [place, is_new] = tensors_.emplace(name, std::move(entry));
      if (!is_new) throw data_error("tensor " + quoted_name(name) + " is in two files: " + place->second.file + " and " + file, folder_);
    }
    return;
  }
  std::unordered_map<std::string, TensorEntry*> held;
  for (TensorEntry& entry : header.tensors) held.emplace(entry.name, &entry);
  for (const std::string& name : *wanted) {
    const auto found = held.find(name);
    if (found == held.end())
      throw data_error("the index says tensor " + quoted_name(name) + " is in this file, but it is not", path,
                       "the index and the shards are of different downloads: download the checkpoint again");
    found->second->file = file;
    tensors_.emplace(name, std::move(*found->second));
  }
}

const WeightFile& HfReader::weight_file(const std::string& file) const {
  const std::lock_guard lock(mutex_);
  const auto found = files_.find(file);
  require(found != files_.end(), "rows wanted of a tensor of another checkpoint");
  File& known = found->second;
  if (!known.opened) {
    const std::string path = folder_ + "/" + file;
    auto opened = std::make_unique<WeightFile>(path);
    if (opened->bytes() != known.bytes)
      throw data_error("the file is truncated or was changed: it had " + std::to_string(known.bytes) +
                           " bytes when the run began and has " + std::to_string(opened->bytes()) + " now",
                       path, "leave the checkpoint alone while it is read; if it was cut short, download it again");
    known.opened = std::move(opened);
  }
  return *known.opened;
}

void HfReader::read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const {
  require(0 <= begin && begin <= end && end <= tensor.rows(), "rows wanted outside the tensor");
  const int64_t total = (end - begin) * tensor.row_bytes();
  if (total == 0) return;
  if (weight_file(tensor.file).read(tensor.offset + begin * tensor.row_bytes(), out, total) != total)
    throw data_error("the file is truncated: it ends inside tensor " + quoted_name(tensor.name), folder_ + "/" + tensor.file,
                     "download it again");
  bytes_read_ += total;
}

std::vector<std::string> HfReader::companion_files() const { return hf_companion_files(folder_); }

}  // namespace ptq::checkpoint
