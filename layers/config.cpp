#include "layers/config.h"

#include <limits>

namespace ptq::layers {

Config::Config(nlohmann::ordered_json json, std::string file) : json_(std::move(json)), file_(std::move(file)) {
  if (!json_.is_object()) throw data_error("config.json is not a JSON object", file_);
}

Error Config::error(const std::string& key, const std::string& what) const {
  return data_error("config key '" + path_ + key + "' " + what, file_, "take the config.json that was published with this checkpoint");
}

int64_t Config::integer(const std::string& key) const {
  if (!has(key)) throw error(key, "is missing");
  const auto& value = json_.at(key);
  if (!value.is_number_integer()) throw error(key, "is not an integer");
  return value.get<int64_t>();
}

double Config::number(const std::string& key) const {
  if (!has(key)) throw error(key, "is missing");
  if (!json_.at(key).is_number()) throw error(key, "is not a number");
  return json_.at(key).get<double>();
}

int64_t Config::integer_or(const std::string& key, int64_t fallback) const { return has(key) ? integer(key) : fallback; }
double Config::number_or(const std::string& key, double fallback) const { return has(key) ? number(key) : fallback; }

bool Config::flag_or(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!json_.at(key).is_boolean()) throw error(key, "is not true or false");
  return json_.at(key).get<bool>();
}

std::string Config::text_or(const std::string& key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!json_.at(key).is_string()) throw error(key, "is not a string");
  return json_.at(key).get<std::string>();
}

int64_t Config::size(const std::string& key) const {
  constexpr int64_t kMost = int64_t{1} << 24;
  const int64_t value = integer(key);
  if (value <= 0 || value > kMost) throw error(key, "is " + std::to_string(value) + ", which cannot be");
  return value;
}

int64_t Config::size_or(const std::string& key, int64_t fallback) const { return has(key) ? size(key) : fallback; }

float Config::positive_or(const std::string& key, double fallback) const {
  const double value = number_or(key, fallback);
  if (!(value > 0 && value <= std::numeric_limits<float>::max())) throw error(key, "is not positive, or too large");
  return static_cast<float>(value);
}

std::vector<int64_t> Config::integers(const std::string& key) const {
  if (!has(key)) throw error(key, "is missing");
  if (!json_.at(key).is_array()) throw error(key, "is not a list");
  std::vector<int64_t> values;
  for (const auto& value : json_.at(key)) {
    if (!value.is_number_integer()) throw error(key, "has the entry " + value.dump() + ", which is not an integer");
    values.push_back(value.get<int64_t>());
  }
  return values;
}

void Config::expect_text(const std::string& key, const std::string& only) const {
  const std::string text = text_or(key, only);
  if (text != only) throw error(key, "is '" + text + "', which is not supported; only '" + only + "' is");
}

Config Config::part(const std::string& key, const std::vector<std::string>& inherited) const {
  if (!has(key) || !json_.at(key).is_object()) throw error(key, "is missing or not an object");
  Config part(json_.at(key), file_);
  part.path_ = path_ + key + ".";
  for (const std::string& name : inherited)
    if (!part.has(name) && has(name)) part.json_[name] = json_.at(name);
  return part;
}

std::string Config::architecture() const {
  if (has("architectures")) {
    const auto& list = json_.at("architectures");
    if (!list.is_array() || list.empty() || !list[0].is_string()) throw error("architectures", "is not a list of names");
    return list[0].get<std::string>();
  }
  if (has("model_type")) return text_or("model_type", "");
  throw error("architectures", "is missing, and so is model_type");
}

}  // namespace ptq::layers
