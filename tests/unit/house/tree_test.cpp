// What every file of the project has in common: a name that says its concept, plain layout, an opening that says what it is, and nothing
// that belongs to the machine it was written on.

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

#include "tests/unit/house/source_tree.h"

namespace ptq::test {

namespace {

TEST(Tree, FileNamesSayAConcept) {
  const std::regex without_concept("(^|[/_])(utils?|common|helpers?|misc)([._/]|$)");
  for (const SourceFile& file : source_tree()) EXPECT_FALSE(std::regex_search(file.path, without_concept)) << file.path;
}

TEST(Tree, NoTabsNoTrailingSpace) {
  for (const SourceFile& file : source_tree()) {
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      EXPECT_EQ(line.find_first_of("\t\r"), std::string::npos) << file.path << ":" << i + 1 << ": a tab or a carriage return";
      EXPECT_FALSE(line.ends_with(' ')) << file.path << ":" << i + 1 << ": space at the end of the line";
    }
  }
}

TEST(Tree, HeadersOpenWithPragmaOnceAndAComment) {
  for (const SourceFile& file : source_tree()) {
    if (!file.path.ends_with(".h") && !file.path.ends_with(".cuh")) continue;

    ASSERT_GE(file.lines.size(), 2u) << file.path;
    EXPECT_EQ(file.lines[0], "#pragma once") << file.path;
    EXPECT_TRUE(file.lines[1].starts_with("//")) << file.path << ": its second line says what this is, what it is not, who may call it";
  }
}

TEST(Tree, SourcesNameTheirConceptBeforeAnyCode) {
  for (const SourceFile& file : source_tree()) {
    if (!file.path.ends_with(".cpp") && !file.path.ends_with(".cu")) continue;
    const auto first = std::find_if(file.lines.begin(), file.lines.end(),
                                    [](const std::string& line) { return !line.empty() && !line.starts_with("#include <"); });

    ASSERT_NE(first, file.lines.end()) << file.path;
    EXPECT_TRUE(first->starts_with("//") || first->starts_with("#include \""))
        << file.path << " has neither a comment nor a header of the project before: " << *first;
  }
}

TEST(Tree, NothingNamesTheMachineOrToolsItWasWrittenWith) {
  // Absolute paths of one person's machine, and tools that are nobody's business. Bracketed, or this file would name them.
  const std::regex private_names(R"((^|[^\w.>}~-])/(wor[k]|hom[e]|User[s]|far[m])/|claud[e]|steerin[g]|\bllm agen[t])", std::regex::icase);
  for (const SourceFile& file : source_tree()) {
    for (size_t i = 0; i < file.lines.size(); ++i) {
      EXPECT_FALSE(std::regex_search(file.lines[i], private_names)) << file.path << ":" << i + 1 << ": " << file.lines[i];
    }
  }
}

}  // namespace

}  // namespace ptq::test
