#pragma once
// A test that runs one recipe several times, each into a folder of its own, and compares what comes out.

#include "tests/e2e/fixtures.h"

namespace ptq::test {

class RecipeRuns : public ::testing::Test {
 protected:
  void write_recipe(const std::string& model, const std::string& data, int samples, int length, const std::string& preset = "nvfp4") {
    folder_.write("recipe.yaml", recipe_text(model, data, folder_ / "unset", samples, length, preset));
  }
  /// Runs the recipe into the folder `name` and returns its path.
  std::string quantize(const std::string& name, int ranks, const std::vector<std::string>& words) {
    std::string output = folder_ / name;
    std::vector<std::string> arguments{folder_ / "recipe.yaml", "output.path=" + output};
    arguments.insert(arguments.end(), words.begin(), words.end());
    last_ = run_program(arguments, {.ranks = ranks});
    expect_success(last_);
    return output;
  }
  /// A conversion of `path` that must end with one error of these words and this exit code, and leave nothing. `config`: model.config, if
  /// any.
  void expect_refused(const std::string& path, const std::string& config, int exit_code, const std::string& words) {
    write_recipe(path, "[]", 1, 1, "none");
    std::vector<std::string> arguments{folder_ / "recipe.yaml", "output.path=" + folder_ / "refused"};
    if (!config.empty()) arguments.push_back("model.config=" + config);
    const ProgramResult result = run_program(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << result.report();
    EXPECT_EQ(result.errors().size(), 1u) << result.report();
    EXPECT_NE(result.err.find(words), std::string::npos) << "expected: " << words << "\n" << result.report();
    for (const char* left : {"refused", "refused.work"}) EXPECT_FALSE(std::filesystem::exists(folder_ / left));
  }
  static void expect_same_output(const std::string& one, const std::string& other) {
    const auto sums = file_sums(one), other_sums = file_sums(other);
    EXPECT_GE(sums.size(), 2u);
    EXPECT_EQ(sums, other_sums) << other;
    const Json manifest = read_json_file(one + "/ptq-runner/manifest.json"),
               other_manifest = read_json_file(other + "/ptq-runner/manifest.json");
    EXPECT_EQ(manifest.at("decisions"), other_manifest.at("decisions")) << other;
  }

  TemporaryFolder folder_;
  ProgramResult last_;
};

}  // namespace ptq::test
