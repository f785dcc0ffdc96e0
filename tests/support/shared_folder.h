#pragma once
// Where the large test material lies: $PTQ_SHARED, else ../shared beside the project. Tests that need it are skipped without it.

#include <cstdlib>
#include <filesystem>
#include <string>

namespace ptq::test {

/// The folder, or "" where it is absent.
inline std::string shared_folder() {
  const char* set = std::getenv("PTQ_SHARED");
  const std::string path = set ? set : std::string(PTQ_SOURCE_DIR) + "/../shared";
  return std::filesystem::is_directory(path) ? path : "";
}

}  // namespace ptq::test

/// First line of a test that reads the shared folder: skips it, with the reason, where the folder is absent.
// NOLINTBEGIN(bugprone-macro-parentheses): the name that a declaration declares cannot be in them.
#define PTQ_NEEDS_SHARED(variable)                         \
  const std::string variable = ptq::test::shared_folder(); \
  if (variable.empty()) GTEST_SKIP() << "no test material: neither $PTQ_SHARED nor ../shared is a folder"
// NOLINTEND(bugprone-macro-parentheses)
