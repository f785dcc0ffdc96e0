#pragma once
// One part of tokenizer.json together with its path inside the file, so that every complaint can say which part it is about.

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

/// A view: the parsed document must outlive it. All readers throw a data Error naming file and path.
class TokenizerJson {
 public:
  TokenizerJson(const nlohmann::json& value, std::string file, std::string path);

  const nlohmann::json& value() const { return *value_; }
  bool is_null() const { return value_->is_null(); }

  /// Member of an object; a part whose value is null where the key is absent.
  TokenizerJson operator[](const std::string& key) const;
  /// A member the caller already holds.
  TokenizerJson member(const std::string& key, const nlohmann::json& value) const;
  std::vector<TokenizerJson> items() const;
  std::string string() const;
  bool boolean() const;
  /// false, or `otherwise`, where the value is null: old files leave keys out.
  bool boolean_or(bool otherwise) const { return is_null() ? otherwise : boolean(); }
  /// A token id.
  int32_t id() const;

  /// Refuses keys of an object beside "type" and these: an unknown key may change ids.
  void allow_keys(std::initializer_list<const char*> keys) const;

  /// The error of this part, with the way out every refusal of a tokenizer has.
  Error error(const std::string& message) const;

 private:
  const nlohmann::json* value_;
  std::string file_, path_;
};

}  // namespace ptq::checkpoint
