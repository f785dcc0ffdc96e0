// A tokenizer.json this program does not understand in full is refused, and the message says which part.

#include <gtest/gtest.h>

#include "tests/unit/tokenizer/tokenizer_files.h"

namespace ptq::test {
namespace {

struct Refusal {
  const char* name;
  json patch;         ///< merged into a file that is fine
  const char* where;  ///< what the error's place ends with
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

class TokenizerRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(TokenizerRefuses, AndNamesThePart) {
  json file = small_tokenizer({"a", "b", "ab"}, {{"a", "b"}});
  file.merge_patch(GetParam().patch);

  const Error error = error_of([&] { open_tokenizer(file); });

  EXPECT_EQ(error.kind(), ErrorKind::kData) << error.report();
  EXPECT_TRUE(error.where().ends_with(std::string("tokenizer.json") + GetParam().where)) << error.report();
  EXPECT_NE(error.fix().find("input_ids"), std::string::npos) << error.report();
}

json split(const std::string& pattern) {
  return {{"pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}}}};
}
json model(const std::string& key, json value) { return {{"model", {{key, std::move(value)}}}}; }
json one_added_token(int id, const std::string& content) { return {{"added_tokens", {{{"id", id}, {"content", content}}}}}; }

INSTANTIATE_TEST_SUITE_P(
    Parts, TokenizerRefuses,
    testing::Values(Refusal{"model", model("type", "Unigram"), ": model.type"},
                    Refusal{"dropout", model("dropout", 0.1), ": model.dropout"},
                    Refusal{"prefix", model("continuing_subword_prefix", "##"), ": model.continuing_subword_prefix"},
                    Refusal{"suffix", model("end_of_word_suffix", "</w>"), ": model.end_of_word_suffix"},
                    Refusal{"model_setting", model("new_setting", true), ": model"},
                    Refusal{"flag", model("byte_fallback", "yes"), ": model.byte_fallback"},
                    Refusal{"negative_id", model("vocab", {{"a", -1}}), ": model.vocab.a"},
                    Refusal{"merge_of_strangers", model("merges", {"a x"}), ": model.merges"},
                    Refusal{"merge_of_three", model("merges", {"a b a"}), ": model.merges"},
                    Refusal{"normalizer", {{"normalizer", {{"type", "Precompiled"}}}}, ": normalizer.type"},
                    Refusal{"nested_normalizer",
                            {{"normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Nmt"}}}}}}},
                            ": normalizer.normalizers[1].type"},
                    Refusal{"pre_tokenizer", {{"pre_tokenizer", {{"type", "UnicodeScripts"}}}}, ": pre_tokenizer.type"},
                    Refusal{"behavior",
                            {{"pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Melted"}}}},
                            ": pre_tokenizer.behavior"},
                    Refusal{"scheme",
                            {{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}}}},
                            ": pre_tokenizer.prepend_scheme"},
                    Refusal{"post_processor", {{"post_processor", {{"type", "BertProcessing"}}}}, ": post_processor.type"},
                    Refusal{"section", {{"epilogue", 1}}, ""}, Refusal{"two_ids_of_a_token", one_added_token(1, "a"), ": added_tokens"},
                    Refusal{"added_id", one_added_token(-4, "z"), ": added_tokens[0].id"},
                    Refusal{"broken_pattern", split("(a"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"word_class", split("\\w+"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"nested_class", split("[a[bc]]"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"intersection", split("[a-z&&\\p{L}]"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"possessive_count", split("a{1,3}+"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"conditional", split("(?(1)a|b)"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"backslash", split("a\\"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"open_class", split("[a"), ": pre_tokenizer.pattern.Regex"},
                    Refusal{"unknown_property", split("\\p{Klingon}"), ": pre_tokenizer.pattern.Regex"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Tokenizer, AMissingFileAsksForTokenIds) {
  const ScratchFolder folder;

  const Error error = error_of([&] { checkpoint::Tokenizer::open(folder.path()); });

  EXPECT_EQ(error.kind(), ErrorKind::kUser);
  EXPECT_NE(error.fix().find("pre-tokenized"), std::string::npos) << error.report();
}

TEST(Tokenizer, AFileThatIsNotJsonIsADataError) {
  const ScratchFolder folder;
  folder.write("tokenizer.json", "{\"model\": ");

  EXPECT_EQ(error_of([&] { checkpoint::Tokenizer::open(folder.path()); }).kind(), ErrorKind::kData);
}

TEST(Tokenizer, InvalidUtf8IsADataError) {
  const auto tokenizer = open_tokenizer(small_tokenizer({"a"}));

  for (const char* text : {"a\xFF", "\xC0\x80", "\xED\xA0\x80", "\xE4\xBD", "\xF5\x80\x80\x80", "\x80"})
    EXPECT_EQ(error_of([&] { tokenizer.encode(text); }).kind(), ErrorKind::kData);
}

TEST(Tokenizer, AnUnknownTokenOutsideTheVocabularyMattersWhenItIsNeeded) {
  json file = small_tokenizer({"a"});
  file["model"]["unk_token"] = "<unk>";
  const auto tokenizer = open_tokenizer(file);

  EXPECT_EQ(tokenizer.encode("a"), std::vector<int32_t>{0});
  EXPECT_EQ(error_of([&] { tokenizer.encode("b"); }).kind(), ErrorKind::kData);
}

}  // namespace
}  // namespace ptq::test
