#pragma once
// THE LIST of what each serving engine does not load, and how to serve what it does. Read from the engines' own loaders (vLLM 0.33,
// SGLang 0.5.23, TensorRT-LLM of 2026); one line in engine_support.cpp each.

#include <string>
#include <vector>

#include "recipes/export_metadata.h"

namespace ptq::recipes {

/// What one of vllm, sglang, tensorrt-llm does with an export.
struct EngineSupport {
  std::string engine;
  bool loads = false;
  std::string reason;   ///< why not
  std::string command;  ///< how to serve it
  std::string needs;    ///< what not every build of the engine has; "": nothing
};
/// Of all three, in that order.
std::vector<EngineSupport> engine_support(const ExportMetadata& metadata, const std::string& output_path);

/// Throws a user Error when the recipe's engine cannot load this export, or, for "any", when none can: with the reasons and the nearest
/// dialect or preset that works.
void check_engine(const Recipe& recipe, const ExportMetadata& metadata);

/// What is wrong with autoquantize's candidates whatever the model: throws a user Error for one that no engine asked for loads, for several
/// that none loads side by side, for KV caches that differ by layer where none loads these, and for formats by expert where the engines run
/// all experts of a layer as one kernel.
void check_candidates(const Recipe& recipe);

}  // namespace ptq::recipes
