#include "recipes/exclusions.h"

#include <fnmatch.h>

#include <algorithm>
#include <string_view>

namespace ptq::recipes {

namespace {

bool all_servers_exclude(const std::string& pattern, const std::string& module) { return fnmatch(pattern.c_str(), module.c_str(), 0) == 0; }

/// Whatever one of them matches with a pattern that ends in * (or has none) holds the text before it. ModelOpt writes no other patterns.
bool some_server_excludes(const std::string& pattern, const std::string& module) {
  const std::string_view text(pattern.data(), pattern.size() - (pattern.ends_with('*') ? 1 : 0));
  if (module.find(text) != std::string::npos) return true;
  return text.find_first_of("*?[") != std::string_view::npos && all_servers_exclude(pattern, module);
}

}  // namespace

std::vector<std::string> summarize_excluded(const std::vector<std::string>& unquantized, const std::vector<std::string>& quantized) {
  const std::set<std::string> taken(quantized.begin(), quantized.end());
  const auto prefix_of_taken = [&](const std::string& prefix) {
    const auto at = taken.lower_bound(prefix);
    return at != taken.end() && at->compare(0, prefix.size(), prefix) == 0;
  };
  std::set<std::string> patterns;
  for (const std::string& name : unquantized) {
    std::string chosen = name;
    for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
      const std::string prefix = name.substr(0, dot);
      if (!prefix_of_taken(prefix)) {
        chosen = prefix + "*";
        break;
      }
      if (!taken.count(prefix) && !prefix_of_taken(prefix + ".")) {
        chosen = prefix + ".*";
        break;
      }
    }
    patterns.insert(chosen);
  }
  return {patterns.begin(), patterns.end()};
}

std::vector<std::string> matrix_modules(const std::vector<checkpoint::OutputTensor>& tensors) {
  std::set<std::string> modules, parents;
  for (const auto& tensor : tensors)
    if (tensor.shape.size() >= 2)
      (tensor.name.ends_with(".weight") ? modules : parents).insert(tensor.name.substr(0, tensor.name.rfind('.')));
  // Where modules are listed below a parent, its own tensor (a table of positions) is no linear's.
  for (const std::string& parent : parents) {
    const auto below = modules.lower_bound(parent + ".");
    if (below == modules.end() || !below->starts_with(parent + ".")) modules.insert(parent);
  }
  return {modules.begin(), modules.end()};
}

std::vector<std::string> exclusion_faults(const std::vector<std::string>& patterns, const std::set<std::string>& quantized,
                                          const std::set<std::string>& unquantized) {
  std::vector<std::string> faults;
  for (const std::string& module : quantized)
    for (const std::string& pattern : patterns)
      if (some_server_excludes(pattern, module)) faults.push_back(module + " is quantized but matches the exclude pattern " + pattern);
  for (const std::string& module : unquantized)
    if (std::none_of(patterns.begin(), patterns.end(), [&](const auto& pattern) { return all_servers_exclude(pattern, module); }))
      faults.push_back(module + " is not quantized, but no exclude pattern says so");
  return faults;
}

}  // namespace ptq::recipes
