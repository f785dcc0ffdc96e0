#include "runner/megatron_arrays.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "kernels/core/error.h"

namespace ptq::runner {

namespace {

std::string without_prefix(std::string_view name) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view prefix : {"module.", "model."})
      if (name.starts_with(prefix)) {
        name.remove_prefix(prefix.size());
        again = true;
      }
  }
  return std::string(name);
}

bool is_training_only(const std::string& name) {
  constexpr std::array<std::string_view, 6> kParts{
      "_extra_state", "rotary_pos_emb.", "rotary_emb.", "local_tokens_per_expert", "global_tokens_per_expert", "rng_state"};
  return name.starts_with("optimizer.") || name.starts_with("chained_") ||
         std::any_of(kParts.begin(), kParts.end(), [&](std::string_view part) { return name.find(part) != std::string::npos; });
}

}  // namespace

SourceArray SourceArray::at(int64_t i) const {
  SourceArray entry = *this;
  entry.index.push_back(i);
  entry.shape.erase(entry.shape.begin());
  return entry;
}

MegatronArrays::MegatronArrays(const checkpoint::ArrayStore& store) : store_(store), ignored_(store.left_out()) {
  for (const auto& [name, entry] : store.arrays()) {
    if (is_training_only(name)) {
      ignored_.push_back(name);
      continue;
    }
    const auto [place, is_new] = by_name_.emplace(without_prefix(name), &entry);
    if (!is_new) throw data_error("arrays " + place->second->name + " and " + name + " are the same part of the model", store.path());
  }
  std::sort(ignored_.begin(), ignored_.end());
}

bool MegatronArrays::has_any(const std::string& prefix) const {
  const auto first = by_name_.lower_bound(prefix);
  return first != by_name_.end() && first->first.starts_with(prefix);
}

std::optional<SourceArray> MegatronArrays::find(const std::string& name) {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return std::nullopt;
  used_.insert(found->second);
  return SourceArray{found->second, {}, found->second->shape};
}

std::optional<SourceArray> MegatronArrays::find(const LayerNames& layer, const std::string& name) {
  if (auto own = find(layer.numbered + name)) return own;
  const auto all = find(layer.stacked + name);
  if (!all) return std::nullopt;
  if (all->shape.empty() || all->shape[0] != layer.count)
    throw data_error("array " + all->array->name + " has the shape " + to_string(all->shape) + ", but config.json says that there are " +
                         std::to_string(layer.count) + " layers",
                     store_.path(), "config.json and checkpoint must be of the same model");
  return all->at(layer.number);
}

std::vector<std::string> MegatronArrays::unused() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : by_name_)
    if (!used_.contains(entry)) names.push_back(entry->name);
  return names;
}

}  // namespace ptq::runner
