#pragma once
// A model's config.json, read with errors that name the file and the key. Understands both dialects of transformers: rope_parameters and
// dtype (5 and later), rope_theta + rope_scaling and torch_dtype (4 and earlier).

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/core/error.h"

namespace ptq::layers {

class Config {
 public:
  /// `file` is what errors name. The JSON must be an object.
  Config(nlohmann::ordered_json json, std::string file);

  const nlohmann::ordered_json& json() const { return json_; }
  const std::string& file() const { return file_; }

  /// The key's value; throws a data Error when it is missing, null or of another type.
  int64_t integer(const std::string& key) const;
  double number(const std::string& key) const;
  /// The same with a default for missing or null.
  int64_t integer_or(const std::string& key, int64_t fallback) const;
  double number_or(const std::string& key, double fallback) const;
  bool flag_or(const std::string& key, bool fallback) const;
  std::string text_or(const std::string& key, const std::string& fallback) const;
  bool has(const std::string& key) const { return json_.contains(key) && !json_.at(key).is_null(); }

  /// A width or a count: an integer from 1 to 2^24, more than any model has, so that widths made of two of them cannot overflow.
  int64_t size(const std::string& key) const;
  int64_t size_or(const std::string& key, int64_t fallback) const;
  /// A number above 0 that is finite as a float.
  float positive_or(const std::string& key, double fallback) const;
  std::vector<int64_t> integers(const std::string& key) const;
  /// Throws unless the key is missing, null or this text: for what has one supported value.
  void expect_text(const std::string& key, const std::string& only) const;

  /// The object at `key` as a config of its own, whose errors name "key.inner"; it inherits these keys of this config where it lacks them.
  Config part(const std::string& key, const std::vector<std::string>& inherited) const;

  /// architectures[0], else model_type; throws when neither is there.
  std::string architecture() const;

  /// A data Error about a key of this file.
  Error error(const std::string& key, const std::string& what) const;

 private:
  nlohmann::ordered_json json_;
  std::string file_;
  std::string path_;  ///< "text_config." in a part
};

}  // namespace ptq::layers
