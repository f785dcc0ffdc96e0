#include "layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ptq::layers {

namespace {

/// yarn's dimension whose wave makes `rotations` turns within the original context.
double yarn_dimension(const RopeSpec& rope, double rotations) {
  return static_cast<double>(rope.rotary_dim) * std::log(rope.original_max_positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

double yarn_mscale(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0; }

/// The value of `key` inside the rope dictionary, else at the top level of the config.
double rope_number(const Config& config, const nlohmann::ordered_json& dict, const std::string& key, double fallback) {
  if (dict.contains(key) && !dict.at(key).is_null()) {
    if (!dict.at(key).is_number()) throw config.error("rope_parameters." + key, "is not a number");
    return dict.at(key).get<double>();
  }
  return config.number_or(key, fallback);
}

/// rope_type, or type as older configs say, or "default".
std::string rope_type(const Config& config, const nlohmann::ordered_json& dict) {
  for (const char* key : {"rope_type", "type"}) {
    if (!dict.contains(key) || dict.at(key).is_null()) continue;
    if (!dict.at(key).is_string()) throw config.error(std::string("rope_parameters.") + key, "is not a string");
    return dict.at(key).get<std::string>();
  }
  return "default";
}

/// Both dictionaries in one. What both say, rope_parameters says; a config of the newer dialect may have got a rope_scaling by hand.
nlohmann::ordered_json rope_dictionary(const Config& config) {
  nlohmann::ordered_json dict = nlohmann::ordered_json::object();
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!config.has(key)) continue;
    if (!config.json().at(key).is_object()) throw config.error(key, "is not an object");
    for (const auto& [name, value] : config.json().at(key).items()) {
      // {"full_attention": {...}, "sliding_attention": {...}}: read as one dictionary it would say nothing and mean the defaults.
      if (value.is_object()) throw config.error(key + ("." + name), "is an object: rope that differs by layer type is not supported");
      if (!value.is_null()) dict[name] = value;
    }
  }
  if (config.has("rope_scaling") && config.has("rope_parameters") &&
      rope_type(config, config.json().at("rope_scaling")) != rope_type(config, config.json().at("rope_parameters")))
    throw config.error("rope_scaling", "and rope_parameters name different rope types: keep one of them");
  return dict;
}

}  // namespace

RopeSpec read_rope(const Config& config, int64_t head_dim, double default_partial_factor, double default_theta) {
  const nlohmann::ordered_json dict = rope_dictionary(config);
  RopeSpec rope;
  rope.type = rope_type(config, dict);
  rope.theta = rope_number(config, dict, "rope_theta", default_theta);
  if (!(rope.theta > 1)) throw config.error("rope_theta", "is not above 1");
  const double partial = rope_number(config, dict, "partial_rotary_factor", default_partial_factor);
  if (!(partial > 0 && partial <= 1)) throw config.error("partial_rotary_factor", "is not above 0 and at most 1");
  rope.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * partial);
  if (rope.rotary_dim <= 0 || rope.rotary_dim % 2 != 0)
    throw config.error("partial_rotary_factor", "gives a rotary width of " + std::to_string(rope.rotary_dim));
  if (rope.type == "default") return rope;
  if (rope.type != "linear" && rope.type != "llama3" && rope.type != "yarn")
    throw config.error("rope_type", "is '" + rope.type + "', which is not supported (default, linear, llama3, yarn are)");
  rope.factor = rope_number(config, dict, "factor", 0.0);
  if (rope.factor <= 0) throw config.error("rope_parameters.factor", "is missing or not positive");
  rope.original_max_positions =
      rope_number(config, dict, "original_max_position_embeddings", config.number_or("max_position_embeddings", 0.0));
  if (rope.type != "linear" && rope.original_max_positions <= 0)
    throw config.error("original_max_position_embeddings", "is missing, and so is max_position_embeddings");
  rope.low_freq_factor = rope_number(config, dict, "low_freq_factor", 1.0);
  rope.high_freq_factor = rope_number(config, dict, "high_freq_factor", 4.0);
  rope.beta_fast = rope_number(config, dict, "beta_fast", 32.0);
  rope.beta_slow = rope_number(config, dict, "beta_slow", 1.0);
  if (!(rope.beta_fast > 0 && rope.beta_slow > 0)) throw config.error("rope_parameters.beta_fast", "or beta_slow is not positive");
  if (!(rope.low_freq_factor > 0 && rope.high_freq_factor > 0))
    throw config.error("rope_parameters.low_freq_factor", "or high_freq_factor is not positive");
  rope.mscale = rope_number(config, dict, "mscale", 0.0);
  rope.mscale_all_dim = rope_number(config, dict, "mscale_all_dim", 0.0);
  rope.attention_factor = rope_number(config, dict, "attention_factor", 0.0);
  if (dict.contains("truncate")) {
    if (!dict.at("truncate").is_boolean()) throw config.error("rope_parameters.truncate", "is not true or false");
    rope.truncate = dict.at("truncate").get<bool>();
  }
  return rope;
}

std::vector<float> inverse_frequencies(const RopeSpec& rope) {
  if (!rope.frequencies.empty()) return rope.frequencies;
  const auto half = static_cast<size_t>(rope.rotary_dim / 2);
  const auto width = static_cast<double>(rope.rotary_dim);
  std::vector<float> frequencies(half);
  for (size_t i = 0; i < half; ++i) frequencies[i] = static_cast<float>(1.0 / std::pow(rope.theta, static_cast<double>(2 * i) / width));
  if (rope.type == "default") return frequencies;

  const auto factor = static_cast<float>(rope.factor);
  if (rope.type == "linear") {
    for (float& f : frequencies) f /= factor;
  } else if (rope.type == "llama3") {
    const double longest = rope.original_max_positions / rope.low_freq_factor,
                 shortest = rope.original_max_positions / rope.high_freq_factor;
    for (float& f : frequencies) {
      const double wavelength = 2 * std::numbers::pi / f;
      if (wavelength > longest) {
        f /= factor;
        continue;
      }
      // Llama 4 Scout has low_freq_factor = high_freq_factor: there is no middle, and its slope would be a division by zero.
      if (wavelength < shortest || rope.high_freq_factor == rope.low_freq_factor) continue;
      const double smooth =
          (rope.original_max_positions / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      f = static_cast<float>((1 - smooth) * f / rope.factor + smooth * f);
    }
  } else {
    double low = yarn_dimension(rope, rope.beta_fast), high = yarn_dimension(rope, rope.beta_slow);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, width - 1);
    if (low == high) high += 0.001;
    for (size_t i = 0; i < half; ++i) {
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      frequencies[i] = static_cast<float>(frequencies[i] / rope.factor * ramp + frequencies[i] * (1 - ramp));
    }
  }
  return frequencies;
}

float attention_factor(const RopeSpec& rope) {
  if (rope.type != "yarn") return 1.0f;
  if (rope.attention_factor != 0) return static_cast<float>(rope.attention_factor);
  if (rope.mscale != 0 && rope.mscale_all_dim != 0)
    return static_cast<float>(yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim));
  return static_cast<float>(yarn_mscale(rope.factor, 1.0));
}

float softmax_factor(const RopeSpec& rope) {
  if (rope.type == "default" || rope.mscale_all_dim == 0) return 1.0f;
  const double m = yarn_mscale(rope.factor, rope.mscale_all_dim);
  return static_cast<float>(m * m);
}

RopeTables make_rope_tables(const RopeSpec& rope, int64_t positions) {
  const std::vector<float> frequencies = inverse_frequencies(rope);
  const float scale = attention_factor(rope);
  const auto half = static_cast<int64_t>(frequencies.size());
  RopeTables tables{Tensor::empty({positions, half}, DType::kF32), Tensor::empty({positions, half}, DType::kF32)};
  auto* cos = tables.cos.data<float>();
  auto* sin = tables.sin.data<float>();
  for (int64_t position = 0; position < positions; ++position)
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * frequencies[static_cast<size_t>(i)];
      cos[position * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * scale;
      sin[position * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * scale;
    }
  return tables;
}

}  // namespace ptq::layers
