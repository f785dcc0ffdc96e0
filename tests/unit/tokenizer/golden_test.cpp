// Ids against those of Hugging Face's tokenizers: whole models from the shared folder, small pipelines from tests/golden/tokenizers.

#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/shared_folder.h"
#include "tests/unit/tokenizer/tokenizer_files.h"

namespace ptq::test {
namespace {

void expect_cases(const checkpoint::Tokenizer& tokenizer, const json& cases) {
  ASSERT_FALSE(cases.empty());
  for (const auto& one : cases) {
    const auto text = one["text"].get<std::string>();
    EXPECT_EQ(json(tokenizer.encode(text)), one["ids"]) << json(text);
    EXPECT_EQ(json(tokenizer.encode(text, /*add_special_tokens=*/false)), one["ids_no_special"]) << json(text);
  }
}

struct Model {
  const char* vectors;
  const char* folder;
};

class TokenizerOfModel : public testing::TestWithParam<Model> {};

TEST_P(TokenizerOfModel, GivesTheIdsOfTheLibrary) {
  PTQ_NEEDS_SHARED(shared);

  const auto tokenizer = checkpoint::Tokenizer::open(shared + "/fixtures/models/" + GetParam().folder);

  expect_cases(tokenizer, json::parse(std::ifstream(shared + "/vectors/tokenizers/" + GetParam().vectors + ".json"))["cases"]);
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerOfModel,
                         testing::Values(Model{"llama3", "llama"}, Model{"qwen", "qwen3"}, Model{"deepseek", "deepseek-v3"},
                                         Model{"mixtral", "mixtral"}),
                         [](const auto& test) { return std::string(test.param.vectors); });

TEST(TokenizerGolden, SmallPipelinesGiveTheIdsOfTheLibrary) {
  const json pipelines = json::parse(std::ifstream(PTQ_SOURCE_DIR "/tests/golden/tokenizers/pipelines.json"))["pipelines"];

  for (const auto& pipeline : pipelines) {
    SCOPED_TRACE(pipeline["tokenizer"].dump());
    expect_cases(open_tokenizer(pipeline["tokenizer"]), pipeline["cases"]);
  }
}

}  // namespace
}  // namespace ptq::test
