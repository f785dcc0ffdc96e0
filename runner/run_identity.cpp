#include "runner/run_identity.h"

#include <algorithm>

#include "checkpoint/files.h"
#include "kernels/core/error.h"
#include "recipes/version.h"

namespace ptq::runner {

namespace {

std::string words(bool value) { return value ? "true" : "false"; }

bool is_written(const recipes::Recipe& recipe, const std::string& key) {
  return std::any_of(recipe.lines.begin(), recipe.lines.end(), [&](const auto& line) { return line.first == key; });
}

}  // namespace

std::map<std::string, std::string> calibration_keys(const recipes::Recipe& recipe) {
  std::map<std::string, std::string> keys{{"calibration.samples", std::to_string(recipe.samples)},
                                          {"calibration.sequence_length", std::to_string(recipe.sequence_length)},
                                          {"calibration.pack", words(recipe.pack)},
                                          {"calibration.drop_short", words(recipe.drop_short)},
                                          {"calibration.seed", std::to_string(recipe.seed)},
                                          {"compute", recipe.compute},
                                          {"moe.force_route", words(recipe.moe.force_route)}};
  // It says how many visits are forced.
  if (recipe.moe.force_route) keys["moe.min_tokens_per_expert"] = std::to_string(recipe.moe.min_tokens_per_expert);
  return keys;
}

void adopt_calibration_keys(const std::map<std::string, std::string>& attributes, const std::string& path, recipes::Recipe& recipe) {
  recipes::Recipe adopted = recipe;
  const auto take = [&](const std::string& key, const auto& set) {
    const auto found = attributes.find(key);
    if (found != attributes.end() && !is_written(recipe, key)) set(found->second);
  };
  take("calibration.samples", [&](const std::string& text) { adopted.samples = std::stoll(text); });
  take("calibration.sequence_length", [&](const std::string& text) { adopted.sequence_length = std::stoll(text); });
  take("calibration.pack", [&](const std::string& text) { adopted.pack = text == "true"; });
  take("calibration.drop_short", [&](const std::string& text) { adopted.drop_short = text == "true"; });
  take("calibration.seed", [&](const std::string& text) { adopted.seed = std::stoll(text); });
  take("compute", [&](const std::string& text) { adopted.compute = text; });
  take("moe.force_route", [&](const std::string& text) { adopted.moe.force_route = text == "true"; });
  take("moe.min_tokens_per_expert", [&](const std::string& text) { adopted.moe.min_tokens_per_expert = std::stoll(text); });
  for (const auto& [key, value] : calibration_keys(adopted)) {
    const auto found = attributes.find(key);
    const std::string theirs = found == attributes.end() ? "not set" : found->second;
    if (theirs != value)
      throw user_error(
          "the statistics in calibration.reuse are of another calibration: there '" + key + "' is " + theirs + ", here it is " + value,
          recipe.where(key) + ", " + path, "write " + key + ": " + theirs + " or nothing, or calibrate again without reuse");
  }
  recipe = adopted;
}

std::map<std::string, std::string> run_attributes(const recipes::Recipe& recipe, const std::string& source_fingerprint,
                                                  const std::string& data_fingerprint, int64_t rows, int64_t tokens) {
  std::map<std::string, std::string> attributes = calibration_keys(recipe);
  attributes["source_fingerprint"] = source_fingerprint;
  attributes["data_fingerprint"] = data_fingerprint;
  attributes["program"] = recipes::kProgram;
  attributes["statistics"] = "1";
  attributes["rows"] = std::to_string(rows);
  attributes["tokens"] = std::to_string(tokens);
  std::string all;
  for (const auto& [key, value] : attributes) all += key + " = " + value + "\n";
  attributes["run"] = checkpoint::sha256_text(all);
  attributes["keep_gram"] = words(recipe.keep_gram && tokens > 0);
  return attributes;
}

}  // namespace ptq::runner
