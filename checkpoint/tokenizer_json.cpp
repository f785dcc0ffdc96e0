#include "checkpoint/tokenizer_json.h"

#include <algorithm>
#include <limits>

namespace ptq::checkpoint {

namespace {
const nlohmann::json kNull;
}  // namespace

TokenizerJson::TokenizerJson(const nlohmann::json& value, std::string file, std::string path)
    : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

TokenizerJson TokenizerJson::operator[](const std::string& key) const {
  if (!value_->is_object()) throw error("expected an object");
  const auto found = value_->find(key);
  return member(key, found == value_->end() ? kNull : *found);
}

TokenizerJson TokenizerJson::member(const std::string& key, const nlohmann::json& value) const {
  return {value, file_, path_.empty() ? key : path_ + "." + key};
}

std::vector<TokenizerJson> TokenizerJson::items() const {
  if (!value_->is_array()) throw error("expected a list");
  std::vector<TokenizerJson> parts;
  parts.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) parts.emplace_back((*value_)[i], file_, path_ + "[" + std::to_string(i) + "]");
  return parts;
}

std::string TokenizerJson::string() const {
  if (!value_->is_string()) throw error("expected a string");
  return value_->get<std::string>();
}

bool TokenizerJson::boolean() const {
  if (!value_->is_boolean()) throw error("expected true or false");
  return value_->get<bool>();
}

int32_t TokenizerJson::id() const {
  // One below the largest int32: "highest id + 1" then still is one.
  constexpr uint64_t kLargest = std::numeric_limits<int32_t>::max() - 1;
  if (!value_->is_number_unsigned() || value_->get<uint64_t>() > kLargest) throw error("expected a token id");
  return static_cast<int32_t>(value_->get<uint64_t>());
}

void TokenizerJson::allow_keys(std::initializer_list<const char*> keys) const {
  if (!value_->is_object()) throw error("expected an object");
  for (const auto& [key, unused] : value_->items()) {
    if (key == "type" || std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    throw error("unknown tokenizer setting '" + key + "'");
  }
}

Error TokenizerJson::error(const std::string& message) const {
  return data_error(message, path_.empty() ? file_ : file_ + ": " + path_,
                    "give pre-tokenized data: .jsonl lines with \"input_ids\", or .safetensors with a tensor input_ids");
}

}  // namespace ptq::checkpoint
