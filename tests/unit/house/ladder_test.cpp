// Who may include whom: runner -> recipes -> layers -> { kernels, parallel, checkpoint }, downward only, skipping a rung is fine. The three
// bottom rooms do not know each other; kernels/core is the floor that everyone stands on.

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <optional>
#include <regex>
#include <set>

#include "tests/unit/house/source_tree.h"

namespace ptq::test {

namespace {

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"runner", {"runner", "recipes", "layers", "kernels", "parallel", "checkpoint", "kernels/core"}},
    {"recipes", {"recipes", "layers", "kernels", "parallel", "checkpoint", "kernels/core"}},
    {"layers", {"layers", "kernels", "parallel", "checkpoint", "kernels/core"}},
    {"kernels", {"kernels", "kernels/core"}},
    {"parallel", {"parallel", "kernels/core"}},
    {"checkpoint", {"checkpoint", "kernels/core"}},
    {"kernels/core", {"kernels/core"}},
};

/// "kernels/core" for the floor, else the first folder of a path.
std::string rung(const std::string& path) { return path.starts_with("kernels/core/") ? "kernels/core" : path.substr(0, path.find('/')); }

/// The path in #include "..."; nothing for other lines.
std::optional<std::string> quoted_include(const std::string& line) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*"([^"]+)")re");
  std::smatch match;
  if (!std::regex_search(line, match, kInclude)) return std::nullopt;
  return match[1].str();
}

TEST(Ladder, IncludesGoDownOnly) {
  int includes_seen = 0;
  for (const SourceFile& file : source_tree()) {
    if (!file.is_code() || !kMayInclude.contains(rung(file.path))) continue;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const auto included = quoted_include(file.lines[i]);
      if (!included) continue;
      ++includes_seen;

      EXPECT_TRUE(kMayInclude.at(rung(file.path)).contains(rung(*included)))
          << file.path << ":" << i + 1 << ": " << rung(file.path) << " may not include " << *included;
    }
  }
  EXPECT_GT(includes_seen, 0);
}

TEST(Ladder, IncludesArePathsFromTheRoot) {
  for (const SourceFile& file : source_tree()) {
    if (!file.is_code()) continue;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const auto included = quoted_include(file.lines[i]);
      if (!included) continue;

      EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(PTQ_SOURCE_DIR) / *included))
          << file.path << ":" << i + 1 << ": " << *included;
    }
  }
}

TEST(Ladder, WorldCommunicatorIsNamedInSessionOnly) {
  const std::string world = std::string("MPI_COMM_") + "WORLD";  // in two parts, or this file would name it
  for (const SourceFile& file : source_tree()) {
    if (!file.is_code() || file.path == "parallel/session.cpp") continue;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      EXPECT_EQ(file.lines[i].find(world), std::string::npos) << file.path << ":" << i + 1;
    }
  }
}

}  // namespace

}  // namespace ptq::test
