#include "layers/config.h"

namespace ptq::layers {

Config::Config(nlohmann::ordered_json json, std::string file) : json_(std::move(json)), file_(std::move(file)) {
  if (!json_.is_object()) throw data_error("config.json is not a JSON object", file_);
}

Error Config::error(const std::string& key, const std::string& what) const {
  return data_error("config key '" + key + "' " + what, file_, "take the config.json that was published with this checkpoint");
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
