#include "checkpoint/reader.h"

#include <algorithm>
#include <set>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

std::string quoted_name(const std::string& name) {
  constexpr size_t kMaxShown = 200;
  size_t shown = std::min(name.size(), kMaxShown);
  while (shown < name.size() && shown > 0 && (static_cast<unsigned char>(name[shown]) & 0xC0) == 0x80) --shown;  // never half a character
  std::string text = "'";
  for (const char c : name.substr(0, shown)) text += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return text + (shown < name.size() ? "...'" : "'");
}

std::string first_names(const std::vector<std::string>& names) {
  constexpr size_t kShown = 3;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i ? ", " : "") + quoted_name(names[i]);
  return text + (names.size() > kShown ? " and " + std::to_string(names.size() - kShown) + " more" : "");
}

const TensorEntry* Reader::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const TensorEntry& Reader::at(const std::string& name) const {
  if (const TensorEntry* entry = find(name)) return *entry;
  throw data_error("the checkpoint has no tensor " + quoted_name(name), folder_, "check that config.json and the weights belong together");
}

std::vector<std::string> Reader::files() const {
  std::set<std::string> names;
  for (const auto& [name, entry] : tensors_) names.insert(entry.file);
  return {names.begin(), names.end()};
}

Tensor Reader::read(const std::string& name) const {
  const TensorEntry& entry = at(name);
  Tensor tensor = Tensor::empty(entry.shape, entry.dtype);
  read_rows(entry, 0, entry.rows(), tensor.raw());
  return tensor;
}

}  // namespace ptq::checkpoint
