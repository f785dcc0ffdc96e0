#pragma once
// PyTorch distributed checkpoints for tests, put together from their parts so that every part can be wrong.

#include <map>
#include <string>
#include <vector>

#include "tests/support/make_torch_file.h"
#include "tests/support/temporary_folder.h"

namespace ptq::test {

/// One chunk of an array: what `.metadata` says of it and what lies at its place.
struct DistChunk {
  std::vector<int64_t> offsets, sizes;
  std::string file;
  std::string slice;                    ///< the bytes of the slice; not needed where offset and length are given
  std::vector<std::string> transforms;  ///< descriptors
  bool is_placed = true;                ///< whether storage_data knows it
  int64_t shift = 0;                    ///< added to its offset in storage_data
  int64_t offset = 0, length = 0;       ///< of the slice in its file, as dist_metadata says
};
struct DistArray {
  std::string name, dtype;  ///< "uint8"
  std::vector<int64_t> shape;
  std::vector<DistChunk> chunks;
};

inline std::string torch_size(const std::vector<int64_t>& sizes) { return pickled_call("torch Size", {pickled_ints(sizes)}); }

/// The text of `.metadata`. `last` goes to the end of its state: key, value, ...
inline std::string dist_metadata(const std::vector<DistArray>& arrays, const std::vector<std::string>& last = {}) {
  const std::string module = "torch.distributed.checkpoint.metadata ";
  std::vector<std::string> descriptions, places;
  for (const DistArray& array : arrays) {
    std::vector<std::string> chunks;
    for (const DistChunk& chunk : array.chunks) {
      chunks.push_back(pickled_object(module + "ChunkStorageMetadata", pickled_dict({pickled("offsets"), torch_size(chunk.offsets),
                                                                                     pickled("sizes"), torch_size(chunk.sizes)})));
      if (!chunk.is_placed) continue;
      places.push_back(pickled_object(module + "MetadataIndex",
                                      pickled_dict({pickled("fqn"), pickled(array.name), pickled("offset"), torch_size(chunk.offsets)})));
      std::vector<std::string> transforms;
      for (const std::string& transform : chunk.transforms) transforms.push_back(pickled(transform));
      places.push_back(pickled_object(
          "torch.distributed.checkpoint.filesystem _StorageInfo",
          pickled_dict({pickled("relative_path"), pickled(chunk.file), pickled("offset"), pickled(chunk.offset), pickled("length"),
                        pickled(chunk.length), pickled("transform_descriptors"), pickled_list(transforms)})));
    }
    descriptions.push_back(pickled(array.name));
    descriptions.push_back(pickled_object(
        module + "TensorStorageMetadata",
        pickled_dict(
            {pickled("properties"),
             pickled_object(module + "TensorProperties", pickled_tuple({pickled_global("torch " + array.dtype), "N", "\x89", "N", "\x89"})),
             pickled("size"), torch_size(array.shape), pickled("chunks"), pickled_list(chunks)})));
  }
  descriptions.push_back(pickled("step"));
  descriptions.push_back(pickled_object(module + "BytesStorageMetadata", "}"));
  places.push_back(pickled_object(module + "MetadataIndex", pickled_dict({pickled("fqn"), pickled("step"), pickled("index"), "N"})));
  places.emplace_back("N");
  std::vector<std::string> state{pickled("state_dict_metadata"), pickled_dict(descriptions), pickled("planner_data"), "N",
                                 pickled("storage_data"),        pickled_dict(places),       pickled("version"),      pickled("1.0.0")};
  state.insert(state.end(), last.begin(), last.end());
  return whole_pickle(pickled_object(module + "Metadata", pickled_dict(state)));
}

/// Writes `.metadata` and the files it names.
inline void write_dist_checkpoint(const TemporaryFolder& folder, std::vector<DistArray> arrays, const std::vector<std::string>& last = {}) {
  std::map<std::string, std::string> files;
  for (DistArray& array : arrays)
    for (DistChunk& chunk : array.chunks) {
      std::string& file = files[chunk.file];
      chunk.offset = static_cast<int64_t>(file.size()) + chunk.shift;
      chunk.length = static_cast<int64_t>(chunk.slice.size());
      file += chunk.slice;
    }
  folder.write(".metadata", dist_metadata(arrays, last));
  for (const auto& [name, bytes] : files) folder.write(name, bytes);
}

/// A chunk of bytes [sizes], all of them `value`.
inline DistChunk byte_chunk(const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes, const std::string& file, char value) {
  size_t count = 1;
  for (const int64_t size : sizes) count *= static_cast<size_t>(size);
  return {offsets, sizes, file, torch_file_of_bytes(sizes, std::string(count, value))};
}

}  // namespace ptq::test
