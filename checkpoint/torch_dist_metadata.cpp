#include "checkpoint/torch_dist_metadata.h"

#include <limits>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "checkpoint/pickle.h"
#include "checkpoint/reader.h"
#include "checkpoint/tensor_name.h"
#include "checkpoint/torch_pickle.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr std::string_view kZstd = "stream.zstd/1";

class MetadataParser {
 public:
  explicit MetadataParser(const std::string& where) : where_(where) {}

  TorchDistMetadata parse(const PickleTree& tree) {
    const PickleValue state = tree.root().state();
    const PickleValue arrays = state.find("state_dict_metadata"), places = state.find("storage_data");
    if (tree.root().callable().name() != "Metadata" || !arrays.is(PickleKind::kDict) || !places.is(PickleKind::kDict))
      throw fail("it does not describe a distributed checkpoint");
    for (const auto& [name, description] : arrays.entries()) add_array(name, description);
    for (const auto& [index, place] : places.entries()) add_place(index.state(), place.state());
    for (size_t i = 0; i < result_.arrays.size(); ++i)
      if (!unplaced_[i].empty()) throw fail("it does not say where a chunk of " + quoted_name(result_.arrays[i].entry.name) + " lies");
    return std::move(result_);
  }

 private:
  Error fail(const std::string& what) const {
    return data_error("the checkpoint's metadata cannot be used: " + what, where_, "copy the checkpoint again, completely");
  }

  void add_array(const PickleValue& key, const PickleValue& description) {
    const std::string name(key.text().value_or(""));
    if (!is_tensor_name(name)) throw fail("it names " + quoted_name(name) + ", which cannot be a name");
    if (!seen_.insert(name).second) throw fail("it names " + quoted_name(name) + " twice");
    if (description.callable().name() != "TensorStorageMetadata" || name.starts_with("optimizer.") || name.starts_with("chained_")) {
      result_.left_out.push_back(name);
      return;
    }

    const PickleValue dtype = description.state().find("properties").state()[0], chunks = description.state().find("chunks");
    const auto known = dtype.module() == "torch" ? dtype_of_torch(dtype.name()) : std::nullopt;
    if (!known) throw fail("the numbers of " + quoted_name(name) + " are of a type that is not read: " + std::string(dtype.name()));
    const auto shape = shape_of_torch(description.state().find("size"));
    if (!shape) throw fail(quoted_name(name) + " has an impossible shape");

    TorchDistMetadata::Array array{.entry = {name, *known, *shape}};
    std::map<Shape, uint32_t> unplaced;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const auto begin = shape_of_torch(chunks[i].state().find("offsets")), sizes = shape_of_torch(chunks[i].state().find("sizes"));
      if (!begin || !sizes || !Box{*begin, *sizes}.is_inside(*shape))
        throw fail("a chunk of " + quoted_name(name) + " reaches outside of it");
      if (element_count(*sizes) == 0) continue;
      if (!unplaced.emplace(*begin, static_cast<uint32_t>(array.chunks.size())).second)
        throw fail("two chunks of " + quoted_name(name) + " begin at the same place");
      array.chunks.push_back({.box = {*begin, *sizes}});
    }
    by_name_.emplace(name, result_.arrays.size());
    result_.arrays.push_back(std::move(array));
    unplaced_.push_back(std::move(unplaced));
  }

  /// `index` says which chunk of which array; places of objects, optimizers and empty chunks are not needed.
  void add_place(const PickleValue& index, const PickleValue& place) {
    const auto array = by_name_.find(std::string(index.find("fqn").text().value_or("")));
    if (array == by_name_.end()) return;
    std::vector<TorchDistChunk>& chunks = result_.arrays[array->second].chunks;
    const PickleValue offset = index.find("offset");
    const auto begin = offset && !offset.is(PickleKind::kNone) ? shape_of_torch(offset) : whole_begin(chunks);
    if (!begin) throw fail("it does not say which chunk of " + quoted_name(array->first) + " lies at a place");
    const auto found = unplaced_[array->second].find(*begin);
    if (found == unplaced_[array->second].end()) {
      for (const TorchDistChunk& chunk : chunks)
        if (chunk.box.begin == *begin) throw fail("it gives two places for a chunk of " + quoted_name(array->first));
      return;
    }
    fill(chunks[found->second], place, array->first);
    unplaced_[array->second].erase(found);
  }

  /// An array of one chunk needs no offset.
  static std::optional<Shape> whole_begin(const std::vector<TorchDistChunk>& chunks) {
    return chunks.size() == 1 ? std::optional(chunks[0].box.begin) : std::nullopt;
  }

  void fill(TorchDistChunk& chunk, const PickleValue& place, const std::string& name) {
    const std::string file(place.find("relative_path").text().value_or(""));
    const auto offset = place.find("offset").integer(), bytes = place.find("length").integer();
    if (!is_base_name(file) || !is_tensor_name(file))
      throw fail("it places " + quoted_name(name) + " in " + quoted_name(file) + ", which is not the name of a file beside it");
    if (!offset || !bytes || *offset < 0 || *bytes < 0 || *offset > std::numeric_limits<int64_t>::max() - *bytes)
      throw fail("it places " + quoted_name(name) + " outside of any file");
    const PickleValue transforms = place.find("transform_descriptors");
    for (size_t i = 0; i < transforms.size(); ++i)
      if (transforms.size() > 1 || transforms[i].text() != kZstd)
        throw data_error(
            "array " + quoted_name(name) + " is stored through " + quoted_name(std::string(transforms[i].data())) + ", which is not read",
            where_, "save the checkpoint without compression, or with zstd");
    chunk.is_compressed = transforms.size() > 0;
    chunk.offset = *offset;
    chunk.bytes = *bytes;
    const auto [known, is_new] = files_.emplace(file, static_cast<uint32_t>(result_.files.size()));
    if (is_new) result_.files.push_back(file);
    chunk.file = known->second;
  }

  const std::string& where_;
  TorchDistMetadata result_;
  std::unordered_set<std::string> seen_;
  std::unordered_map<std::string, size_t> by_name_;
  std::unordered_map<std::string, uint32_t> files_;
  std::vector<std::map<Shape, uint32_t>> unplaced_;  ///< chunks of each array by where they begin, while their place is not known
};
}  // namespace

TorchDistMetadata parse_torch_dist_metadata(std::string_view text, const std::string& where) {
  // What every rank planned to write, kept by Megatron-core at the end: larger than all the rest together, and said there already.
  const PickleTree tree = parse_pickle(text, where, {.drop_from_key = "all_local_plans"});
  return MetadataParser(where).parse(tree);
}

}  // namespace ptq::checkpoint
