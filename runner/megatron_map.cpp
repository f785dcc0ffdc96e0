#include "runner/megatron_map.h"

#include <utility>

#include "kernels/core/error.h"

namespace ptq::runner {

namespace {
constexpr const char* kSameModel = "config.json and checkpoint must be of the same model";
}

SourceArray MegatronMap::any_of(const LayerNames& layer, const std::vector<std::string>& names, const std::string& tensor) {
  for (const std::string& name : names)
    if (const auto found = arrays_.find(layer, name)) return *found;
  std::string looked_for;
  for (const std::string& name : names) looked_for += (looked_for.empty() ? "" : ", ") + layer.numbered + name;
  throw data_error("the checkpoint has no array for tensor " + tensor + ", which config.json asks for: looked for " + looked_for,
                   arrays_.store().path(), kSameModel);
}

void MegatronMap::check_shape(const SourceArray& array, const Shape& shape, const std::string& tensor) const {
  if (array.shape != shape)
    throw data_error("array " + array.array->name + " has the shape " + to_string(array.shape) + (array.index.empty() ? "" : " an entry") +
                         ", but config.json says " + to_string(shape) + " (tensor " + tensor + ")",
                     arrays_.store().path(), kSameModel);
}

void MegatronMap::add(const std::string& tensor, const SourceArray& array, const Shape& shape, bool is_norm) {
  check_shape(array, shape, tensor);
  add_rows(tensor, array, {{0, shape.empty() ? 1 : shape[0]}});
  if (is_norm && array.array->dtype == DType::kF32) tensors_.at(tensor).dtype = norms_;
}

void MegatronMap::add_rows(const std::string& tensor, const SourceArray& array, const std::vector<Run>& runs) {
  MappedTensor mapped{array.array->dtype, array.shape, {}};
  int64_t rows = 0;
  for (const Run& run : runs) {
    require(array.shape.empty() || (run.begin >= 0 && run.begin + run.count <= array.shape[0]), "rows that the array does not have");
    mapped.rows.push_back({array.array, array.index, run.begin, run.count});
    rows += run.count;
  }
  if (!mapped.shape.empty()) mapped.shape[0] = rows;
  require(tensors_.emplace(tensor, std::move(mapped)).second, "a tensor mapped twice");
}

}  // namespace ptq::runner
