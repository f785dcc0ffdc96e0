#include "checkpoint/zarr_store.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

constexpr std::string_view kDescription = ".zarray";
constexpr int64_t kMostDescription = int64_t{1} << 20;
constexpr size_t kMostDimensions = 8;
constexpr int64_t kMostExtent = int64_t{1} << 40;

struct Description {
  Shape shape, chunks;
  DType dtype = DType::kF32;
  std::string separator = ".";
};

/// Megatron writes bfloat16 under its own name, all else as numpy does.
std::optional<DType> dtype_of(const std::string& text) {
  static const std::map<std::string, DType> kTypes{
      {"bfloat16", DType::kBF16}, {"<f4", DType::kF32}, {"<f2", DType::kF16}, {"<f8", DType::kF64}, {"<i8", DType::kI64},
      {"<i4", DType::kI32},       {"<i2", DType::kI16}, {"|i1", DType::kI8},  {"|u1", DType::kU8},  {"|b1", DType::kBool}};
  const auto found = kTypes.find(text);
  return found == kTypes.end() ? std::nullopt : std::optional(found->second);
}

Shape extents(const nlohmann::json& json, const char* key, int64_t least, const std::string& where) {
  const auto found = json.find(key);
  bool is_sound = found != json.end() && found->is_array() && found->size() <= kMostDimensions;
  Shape extents;
  for (size_t i = 0; is_sound && i < found->size(); ++i) {
    const nlohmann::json& value = (*found)[i];
    is_sound = value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(kMostExtent) && value.get<int64_t>() >= least;
    if (is_sound) extents.push_back(value.get<int64_t>());
  }
  int64_t elements = 1;
  for (const int64_t extent : extents) {
    is_sound = is_sound && (extent == 0 || elements <= kMostExtent / extent);
    if (is_sound) elements *= extent;
  }
  if (!is_sound) throw data_error(std::string("'") + key + "' is not the shape of an array", where);
  return extents;
}

/// What a compressor or a filter calls itself.
std::string id_of(const nlohmann::json& part) {
  const nlohmann::json& one = part.is_array() && !part.empty() ? part[0] : part;
  return one.is_object() && one.contains("id") && one["id"].is_string() ? quoted_name(one["id"].get<std::string>()) : "an unknown one";
}

Description describe(const FileSlice& file, const std::string& where) {
  const std::string text = read_slice(file, kMostDescription);
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) throw data_error("the description of a zarr array is not a JSON object", where);
  const auto value = [&](const char* key) { return json.value(key, nlohmann::json(nullptr)); };
  if (value("zarr_format") != 2) throw data_error("a zarr array of version " + value("zarr_format").dump() + ", where 2 is known", where);
  constexpr const char* kStore = "load the checkpoint with the framework that wrote it and save it as torch_dist";
  if (!value("compressor").is_null()) throw data_error("the chunks are compressed with " + id_of(value("compressor")), where, kStore);
  if (!value("filters").is_null() && value("filters") != nlohmann::json::array())
    throw data_error("the chunks went through the filter " + id_of(value("filters")), where, kStore);
  if (value("order") != "C") throw data_error("the chunks are in order " + value("order").dump() + ", where C is known", where, kStore);
  Description description;
  const std::string dtype = value("dtype").is_string() ? value("dtype").get<std::string>() : value("dtype").dump();
  const std::optional<DType> known = dtype_of(dtype);
  if (!known) throw data_error("an array of the zarr dtype " + quoted_name(dtype) + ", which this program does not read", where);
  description.dtype = *known;
  description.shape = extents(json, "shape", 0, where);
  description.chunks = extents(json, "chunks", 1, where);
  if (description.chunks.size() != description.shape.size()) throw data_error("chunks and shape have different dimensions", where);
  const nlohmann::json separator = value("dimension_separator");
  if (!separator.is_null()) {
    if (separator != "." && separator != "/") throw data_error("the dimension separator " + separator.dump() + " is not known", where);
    description.separator = separator.get<std::string>();
  }
  return description;
}

bool is_of_optimizer(const std::string& name) { return name.starts_with("optimizer.") || name.starts_with("chained_"); }

std::string chunk_name(const Shape& index, const std::string& separator) {
  std::string name;
  for (const int64_t i : index) name += (name.empty() ? "" : separator) + std::to_string(i);
  return name.empty() ? "0" : name;  // a scalar's only chunk
}

}  // namespace

bool ZarrStore::accepts(const FileSet& files) {
  return std::any_of(files.begin(), files.end(), [](const auto& file) { return file.first.ends_with("/" + std::string(kDescription)); });
}

std::unique_ptr<ArrayStore> ZarrStore::open(const FileSet& files, const std::string& path) {
  std::unique_ptr<ZarrStore> store(new ZarrStore(path));  // make_unique cannot reach the private constructor
  const std::string ending = "/" + std::string(kDescription);
  for (const auto& [name, slice] : files) {
    if (!name.ends_with(ending)) continue;
    const std::string array = name.substr(0, name.size() - ending.size());
    if (is_of_optimizer(array))
      store->left_out_.push_back(array);
    else
      store->add(array, slice, files_below(files, array));
  }
  return store;
}

void ZarrStore::add(const std::string& name, const FileSlice& description_file, const FileSet& chunks) {
  const std::string where = path_ + ": " + name;
  const Description description = describe(description_file, where);
  const size_t dimensions = description.shape.size();
  Shape strides(dimensions, 1), index(dimensions, 0);
  for (size_t d = dimensions; d-- > 1;) strides[d - 1] = strides[d] * description.chunks[d];
  const int64_t chunk_bytes = element_count(description.chunks) * dtype_bytes(description.dtype);
  std::vector<Shard> shards;
  bool is_done = element_count(description.shape) == 0;
  while (!is_done) {
    const std::string chunk = chunk_name(index, description.separator);
    const auto file = chunks.find(chunk);
    if (file == chunks.end())
      throw data_error("chunk " + chunk + " of array " + quoted_name(name) + " is missing", where,
                       "copy the checkpoint again, with the files of all ranks");
    if (file->second.bytes != chunk_bytes)
      throw data_error("chunk " + chunk + " of array " + quoted_name(name) + " has " + std::to_string(file->second.bytes) + " bytes, not " +
                           std::to_string(chunk_bytes),
                       where, "copy the checkpoint again, completely");
    Shard shard{{index, description.chunks}, strides, file->second.path, file->second.offset};
    for (size_t d = 0; d < dimensions; ++d) {
      shard.box.begin[d] *= description.chunks[d];
      shard.box.sizes[d] = std::min(description.chunks[d], description.shape[d] - shard.box.begin[d]);
    }
    shards.push_back(std::move(shard));
    size_t d = dimensions;
    while (d > 0 && ++index[d - 1] * description.chunks[d - 1] >= description.shape[d - 1]) index[--d] = 0;
    is_done = d == 0;
  }
  add_array({name, description.dtype, description.shape}, std::move(shards));
}

}  // namespace ptq::checkpoint
