#pragma once
// config.json's quantization_config in the dialects other than ModelOpt's: compressed-tensors (vLLM's), and the FP8 blocks of DeepSeek-V3.
// Both have that one file, and name modules in full or by "re:" and a regular expression over the whole name.

#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "recipes/export_metadata.h"

namespace ptq::recipes {

/// Sorted names of modules left alone; the experts of `containers` (modules of routed experts) by one expression each: "re:...experts\..*".
std::vector<std::string> exact_exclusions(const std::vector<std::string>& unquantized, const std::set<std::string>& containers);

Json compressed_words(const ExportMetadata& metadata);
Json deepseek_words(const ExportMetadata& metadata);

/// Names as compressed-tensors lists them: in full, by "re:" and a regular expression, or Linear for all.
class ModuleNames {
 public:
  explicit ModuleNames(const Json& patterns);
  bool has(const std::string& module) const;

 private:
  bool has_all_ = false;
  std::set<std::string> names_, parents_;  ///< parents: of expressions that mean everything below a module
  std::vector<std::regex> expressions_;
};

/// Which format compressed-tensors' words give a module.
class CompressedFormats {
 public:
  /// Throws a data Error for a group whose arguments are of no format here.
  explicit CompressedFormats(const Json& words);
  /// kNone where it is under `ignore` or in no group.
  Format of(const std::string& module) const;

 private:
  ModuleNames ignored_;
  std::vector<std::pair<ModuleNames, Format>> groups_;
};

/// What is wrong with the words themselves, a sentence each.
std::vector<std::string> compressed_faults(const Json& words);
std::vector<std::string> deepseek_faults(const Json& words);

}  // namespace ptq::recipes
