// The README keeps its promises: its two commands exist, its recipe is one, and what it links to is there.

#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <regex>

#include "tests/unit/house/source_tree.h"

namespace ptq::test {

namespace {

/// The text between the first line that opens a block of this language and the line that closes it.
std::string code_block(const std::string& text, const std::string& language) {
  const std::string opening = "```" + language + "\n";
  const size_t begin = text.find(opening);
  if (begin == std::string::npos) return "";
  return text.substr(begin + opening.size(), text.find("```", begin + opening.size()) - begin - opening.size());
}

TEST(Readme, ItsCommandsAreKnownToDev) {
  const std::string readme = read_text("README.md");
  const std::string dev = read_text("dev");

  for (const char* command : {"demo", "test"}) {
    EXPECT_NE(readme.find(std::string("./dev ") + command), std::string::npos) << command;
    EXPECT_TRUE(std::regex_search(dev, std::regex(std::string("\\n  ") + command + " "))) << command << " is not in ./dev help";
  }
}

TEST(Readme, ItsRecipeIsOne) {
  const std::string text = code_block(read_text("README.md"), "yaml");

  ASSERT_FALSE(text.empty());
  const YAML::Node recipe = YAML::Load(text);
  for (const char* key : {"model", "calibration", "quantization", "output"}) EXPECT_TRUE(recipe[key].IsMap()) << key;
  EXPECT_TRUE(recipe["model"]["path"].IsScalar());
  EXPECT_TRUE(recipe["calibration"]["data"].IsDefined());
  EXPECT_TRUE(recipe["quantization"]["preset"].IsScalar());
  EXPECT_TRUE(recipe["output"]["path"].IsScalar());
}

TEST(Readme, ItsLinksAreThere) {
  const std::string readme = read_text("README.md");
  const std::regex link(R"(\]\(([^):]+)\))");

  for (auto match = std::sregex_iterator(readme.begin(), readme.end(), link); match != std::sregex_iterator(); ++match)
    EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(PTQ_SOURCE_DIR) / (*match)[1].str())) << (*match)[1];
}

}  // namespace

}  // namespace ptq::test
