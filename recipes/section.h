#pragma once
// One mapping of the recipe while it is read: hands out values by key and, at its end, knows which keys nobody asked for. Every complaint
// is a user Error with file, line and dotted key.

#include <yaml-cpp/yaml.h>

#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "recipes/recipe.h"

namespace ptq::recipes {

class Section {
 public:
  /// `path` is the dotted path of this mapping, "" at the top. Lines of the keys that are read go into recipe.lines.
  Section(const YAML::Node& node, std::string path, Recipe& recipe);
  Section section(const std::string& key) { return {take(key), dotted(key), recipe_}; }
  /// The key was written, with a value.
  bool has(const std::string& key) { return take(key).IsDefined(); }

  /// Each leaves `value` as it is when the key is absent or null.
  void read(const std::string& key, std::string& value);
  void read(const std::string& key, int64_t& value);
  void read(const std::string& key, double& value);
  void read(const std::string& key, bool& value);
  void read(const std::string& key, std::vector<std::string>& value);  ///< one text counts as a list of one
  void read_bytes(const std::string& key, int64_t& value);
  void read_choice(const std::string& key, std::string& value, const std::vector<std::string>& choices);
  void read_rules(const std::string& key, std::vector<Rule>& rules);

  /// A key of the contract that this version only accepts with its default.
  template <class T>
  void only(const std::string& key, T fallback, const std::string& why) {
    T value = fallback;
    read(key, value);
    if (value != fallback) refuse(key, why);
  }
  /// The only keys there may be, for a mapping that is checked before it is read.
  void expect(std::vector<std::string> keys);
  /// Call last: throws for a key that nobody read, with the nearest known one, and for a key written twice.
  void finish() const;

 private:
  std::string dotted(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  std::string at(const YAML::Node& node, const std::string& key) const;
  [[noreturn]] void refuse(const std::string& key, const std::string& why) const;
  YAML::Node take(const std::string& key);

  YAML::Node node_;
  std::string path_;
  Recipe& recipe_;
  std::vector<std::string> known_;
};

}  // namespace ptq::recipes
