#include "checkpoint/torch_dist_store.h"

#include <algorithm>
#include <set>
#include <utility>

#include "checkpoint/reader.h"
#include "checkpoint/zstd_text.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr const char* kCopyAgain = "copy the checkpoint again, completely";
/// What a file of torch.save around one tensor may have besides the tensor's bytes.
constexpr int64_t kShardOverhead = int64_t{1} << 20;

/// Shapes are compared without their ones: the layer a chunk is of may be a dimension of the array and none of the tensor.
Shape without_ones(Shape shape) {
  std::erase(shape, 1);
  return shape;
}
}  // namespace

std::unique_ptr<TorchDistStore> TorchDistStore::open(const FileSet& files, const std::string& path) {
  std::unique_ptr<TorchDistStore> store(new TorchDistStore(path));  // make_unique cannot reach the private constructor
  const FileSlice& description = files.at(kMetadata);
  store->metadata_ = store->part(description, kMetadata);
  const std::string& where = store->metadata_.where;
  TorchDistMetadata metadata = parse_torch_dist_metadata(read_slice(description, static_cast<int64_t>(PickleOptions().max_bytes)), where);
  for (TorchDistMetadata::Array& array : metadata.arrays) {
    std::vector<Box> boxes;
    for (const TorchDistChunk& chunk : array.chunks) boxes.push_back(chunk.box);
    const std::string name = array.entry.name;
    Stored& stored = store->stored_[name];
    stored.grid = ChunkGrid(array.entry.shape, boxes, name, where);
    stored.chunks = std::move(array.chunks);
    store->arrays_.emplace(name, std::move(array.entry));
  }
  store->left_out_ = std::move(metadata.left_out);
  store->find_parts(files, metadata.files);
  return store;
}

TorchDistStore::Part TorchDistStore::part(const FileSlice& file, const std::string& name) const {
  return {name_below(path_, file.path), file.path == path_ ? path_ + ": " + name : file.path, file.offset, file.bytes};
}

/// Every chunk's slice must be there before hours are spent on the others.
void TorchDistStore::find_parts(const FileSet& files, const std::vector<std::string>& names) {
  struct Need {
    int64_t bytes = 0;
    std::vector<std::string> arrays;
  };
  std::vector<Need> needs(names.size());
  for (const auto& [name, stored] : stored_) {
    for (const TorchDistChunk& chunk : stored.chunks) {
      Need& need = needs[chunk.file];
      need.bytes = std::max(need.bytes, chunk.offset + chunk.bytes);
      if (need.arrays.empty() || need.arrays.back() != name) need.arrays.push_back(name);
    }
  }
  for (size_t i = 0; i < names.size(); ++i) {
    const auto found = files.find(names[i]);
    if (found == files.end())
      throw data_error("file " + quoted_name(names[i]) + " of the checkpoint is missing: it holds parts of " +
                           std::to_string(needs[i].arrays.size()) + " arrays: " + first_names(needs[i].arrays),
                       path_, kCopyAgain);
    parts_.push_back(part(found->second, names[i]));
    if (parts_[i].bytes < needs[i].bytes)
      throw data_error("the file is truncated: it has " + std::to_string(parts_[i].bytes) + " bytes of at least " +
                           std::to_string(needs[i].bytes) + " and holds parts of " + std::to_string(needs[i].arrays.size()) +
                           " arrays: " + first_names(needs[i].arrays),
                       parts_[i].where, kCopyAgain);
  }
}

std::vector<std::string> TorchDistStore::files() const {
  std::set<std::string> names{metadata_.name};
  for (const Part& part : parts_) names.insert(part.name);
  return {names.begin(), names.end()};
}

const TorchDistStore::Stored& TorchDistStore::stored(const ArrayEntry& array) const {
  const auto found = stored_.find(array.name);
  require(found != stored_.end(), "a box wanted of an array of another checkpoint");
  return found->second;
}

std::pair<std::string, int64_t> TorchDistStore::place(const ArrayEntry& array) const {
  const std::vector<TorchDistChunk>& chunks = stored(array).chunks;
  const auto first = std::min_element(chunks.begin(), chunks.end(),
                                      [](const TorchDistChunk& a, const TorchDistChunk& b) { return a.box.begin < b.box.begin; });
  if (first == chunks.end()) return {metadata_.name, metadata_.offset};
  const Part& part = parts_[first->file];
  return {part.name, part.offset + first->offset};
}

ByteSlice TorchDistStore::slice(const TorchDistChunk& chunk) const {
  const Part& part = parts_[chunk.file];
  return {open_.open(part.name), part.where, part.offset + chunk.offset, chunk.bytes};
}

/// The one tensor of a slice, checked against what the metadata says of it.
TorchTensor TorchDistStore::shard(const ArrayEntry& array, const TorchDistChunk& chunk, const ByteSlice& slice) const {
  const TorchFile file(slice);
  const TorchTensor tensor = file.tensor(file.root(), array.name);
  if (tensor.dtype != array.dtype || without_ones(tensor.shape) != without_ones(chunk.box.sizes))
    throw data_error("the chunk of " + quoted_name(array.name) + " at " + to_string(chunk.box.begin) + " is " +
                         std::string(dtype_name(tensor.dtype)) + " " + to_string(tensor.shape) + ", and the metadata says " +
                         std::string(dtype_name(array.dtype)) + " " + to_string(chunk.box.sizes),
                     slice.where(), "the files are of different checkpoints: copy the checkpoint again");
  return tensor;
}

int64_t TorchDistStore::place_in_file(const ArrayEntry& array, const TorchDistChunk& chunk) const {
  if (chunk.is_compressed) return -1;
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = places_.find(&chunk); known != places_.end()) return known->second;
  }
  const TorchTensor tensor = shard(array, chunk, slice(chunk));
  const int64_t place = tensor.is_contiguous ? tensor.offset : -1;
  const std::lock_guard lock(mutex_);
  places_.emplace(&chunk, place);
  return place;
}

/// The row-major bytes of a chunk that does not have them in its file: it is compressed, or was saved with other strides.
std::shared_ptr<const std::string> TorchDistStore::decoded(const ArrayEntry& array, const TorchDistChunk& chunk) const {
  {
    const std::lock_guard lock(mutex_);
    const Decoded& last = decoded_[std::this_thread::get_id()];
    if (last.chunk == &chunk) return last.bytes;
  }
  ByteSlice from = slice(chunk);
  if (chunk.is_compressed) {
    const int64_t most = element_count(chunk.box.sizes) * dtype_bytes(array.dtype) + kShardOverhead;
    from = ByteSlice(std::make_shared<const std::string>(zstd_decoded(from.text(0, from.bytes()), most, from.where())), from.where());
  }
  const TorchTensor tensor = shard(array, chunk, from);
  std::string bytes(static_cast<size_t>(tensor.bytes()), '\0');
  read_torch_rows(from, tensor, 0, tensor.rows(), reinterpret_cast<std::byte*>(bytes.data()));
  auto shared = std::make_shared<const std::string>(std::move(bytes));
  const std::lock_guard lock(mutex_);
  decoded_[std::this_thread::get_id()] = {&chunk, shared};
  return shared;
}

void TorchDistStore::read_box(const ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const {
  const Box box{begin, sizes};
  const Stored& found = stored(array);
  require(box.is_inside(array.shape), "a box wanted outside the array");
  if (element_count(sizes) == 0) return;
  for (const uint32_t index : found.grid.touched(box)) {
    const TorchDistChunk& chunk = found.chunks[index];
    const int64_t place = place_in_file(array, chunk);
    ReadChunk read;
    if (place >= 0) {
      read = [from = slice(chunk), place](int64_t offset, std::byte* to, int64_t bytes) { from.read(place + offset, to, bytes); };
    } else {
      read = [from = ByteSlice(decoded(array, chunk), parts_[chunk.file].where)](int64_t offset, std::byte* to, int64_t bytes) {
        from.read(offset, to, bytes);
      };
    }
    bytes_read_ += read_overlap(chunk.box, box, dtype_bytes(array.dtype), read, out);
  }
}

}  // namespace ptq::checkpoint
