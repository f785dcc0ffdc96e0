// What an export has beside its tensors: the source's own words and files, and whether its recipe changed more than linears.

#include "recipes/export_metadata.h"
#include "recipes/recipe.h"
#include "recipes/weight_solver.h"
#include "runner/verify_judge.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

/// config.json but for the words of quantization.
Json plain_config(const Json& config) { return recipes::quantized_config(config, recipes::ExportMetadata{}); }

}  // namespace

std::string method_of(const std::string& folder) {
  const std::string path = folder + "/ptq-runner/recipe.yaml";
  if (!checkpoint::exists(path)) return "";
  try {
    return recipes::parse_recipe(checkpoint::read_text(path), path, {}).method;
  } catch (const Error&) {
    return "";  // of another version
  }
}

bool takes_factors(recipes::Format format) { return format == recipes::Format::kInt8 || recipes::is_solvable(format); }

void check_companions(const std::string& folder, const SourceModel& exported, const SourceModel& original, Judge& judge) {
  judge.claim(plain_config(exported.config) == plain_config(original.config),
              "config.json differs from the source's in more than quantization_config");
  for (const auto& [name, from] : original.companions) {
    if (name == "config.json" || name == "hf_quant_config.json" || name.starts_with("ptq-runner/")) continue;
    const std::string to = folder + "/" + name;
    judge.claim(checkpoint::exists(to), name + " is in the source but not here");
    if (!checkpoint::exists(to)) continue;
    const std::string now = checkpoint::read_text(to), before = checkpoint::read_text(from);
    bool equal = now == before;
    if (!equal && name == "generation_config.json")
      equal = Json::parse(now, nullptr, false) == recipes::generation_config(checkpoint::read_json(from));
    judge.claim(equal, name + " differs from the source's");
  }
}

}  // namespace ptq::runner
