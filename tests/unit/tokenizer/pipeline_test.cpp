// Each part of a tokenizer.json by hand, on vocabularies small enough to follow.

#include <gtest/gtest.h>

#include <chrono>

#include "tests/unit/tokenizer/tokenizer_files.h"

namespace ptq::test {
namespace {

using Ids = std::vector<int32_t>;

json added_token(int id, const std::string& content, bool is_normalized = false) {
  return {{"id", id},        {"content", content},          {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", is_normalized}, {"special", true}};
}

json split_on_space(const std::string& behavior, bool is_inverted = false) {
  return {{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", behavior}, {"invert", is_inverted}};
}

TEST(TokenizerBpe, MergesTheLowestRankFirstAndTheLeftmostOnATie) {
  const auto tokenizer = open_tokenizer(small_tokenizer({"a", "b", "c", "ab", "bc", "aa"}, {{"b", "c"}, {"a", "b"}, {"a", "a"}}));

  EXPECT_EQ(tokenizer.encode("abc"), (Ids{0, 4}));
  EXPECT_EQ(tokenizer.encode("aaa"), (Ids{5, 0}));
  EXPECT_EQ(tokenizer.vocab_size(), 6);
}

TEST(TokenizerBpe, MergesOfStringsAndOfPairsAreTheSame) {
  json file = small_tokenizer({"a", "b", "ab"});
  file["model"]["merges"] = {"#version: 0.2", "a b"};

  EXPECT_EQ(open_tokenizer(file).encode("abb"), (Ids{2, 1}));
}

TEST(TokenizerBpe, IgnoreMergesTakesAWholePieceOfTheVocabulary) {
  json file = small_tokenizer({"a", "b", "c", "bc", "abc"}, {{"b", "c"}});

  EXPECT_EQ(open_tokenizer(file).encode("abc"), (Ids{0, 3}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(open_tokenizer(file).encode("abc"), (Ids{4}));
  EXPECT_EQ(open_tokenizer(file).encode("abcc"), (Ids{0, 3, 2}));
}

TEST(TokenizerBpe, UnknownCharactersAreDroppedWithoutAnUnknownToken) {
  EXPECT_EQ(open_tokenizer(small_tokenizer({"a"})).encode("xaxxa"), (Ids{0, 0}));
}

TEST(TokenizerBpe, UnknownCharactersFuseOnlyWhenAsked) {
  json file = small_tokenizer({"<unk>", "a"});
  file["model"]["unk_token"] = "<unk>";

  EXPECT_EQ(open_tokenizer(file).encode("xyazé"), (Ids{0, 0, 1, 0, 0}));
  file["model"]["fuse_unk"] = true;
  EXPECT_EQ(open_tokenizer(file).encode("xyazé"), (Ids{0, 1, 0}));
}

TEST(TokenizerBpe, ByteFallbackNeedsEveryByteOfTheCharacter) {
  json file = small_tokenizer({"<unk>", "a", "<0xC3>", "<0xA9>"});
  file["model"]["unk_token"] = "<unk>";
  file["model"]["byte_fallback"] = true;

  EXPECT_EQ(open_tokenizer(file).encode("é"), (Ids{2, 3}));
  EXPECT_EQ(open_tokenizer(file).encode("è"), (Ids{0}));  // C3 A8
}

TEST(TokenizerBpe, LongPiecesMergeAsShortOnesDo) {
  const auto tokenizer =
      open_tokenizer(small_tokenizer({"a", "b", "aa", "aaaa", "ab", "aab"}, {{"a", "a"}, {"aa", "aa"}, {"a", "b"}, {"aa", "b"}}));

  for (const int count : {31, 32, 33, 34, 35, 36, 101}) {
    const Ids ids = tokenizer.encode(std::string(static_cast<size_t>(count), 'a') + "b");

    Ids expected(static_cast<size_t>(count / 4), 3);
    const std::vector<Ids> rests = {{1}, {4}, {5}, {2, 4}};
    expected.insert(expected.end(), rests[static_cast<size_t>(count % 4)].begin(), rests[static_cast<size_t>(count % 4)].end());
    EXPECT_EQ(ids, expected) << count;
  }
}

TEST(TokenizerBpe, AMillionTimesTheSameCharacterIsNoTrouble) {
  const auto tokenizer = open_tokenizer(small_tokenizer({"a", "aa", "aaaa"}, {{"a", "a"}, {"aa", "aa"}}));

  const auto begin = std::chrono::steady_clock::now();
  const Ids ids = tokenizer.encode(std::string(1 << 20, 'a'));

  EXPECT_EQ(ids, Ids(1 << 18, 2));
  // Measured: 0.1 s, a few times that under a sanitizer; a quadratic loop takes minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(PreTokenizer, SplitBehaviorsDifferInWhatBecomesOfTheDelimiter) {
  // Whole pieces are tokens: the ids spell the pieces.
  json file = small_tokenizer({"a", " ", "a ", " a", "  ", "  a", "a  "});
  file["model"]["ignore_merges"] = true;
  const auto ids = [&](const std::string& behavior, bool is_inverted = false) {
    file["pre_tokenizer"] = split_on_space(behavior, is_inverted);
    return open_tokenizer(file).encode("a  a");
  };

  EXPECT_EQ(ids("Removed"), (Ids{0, 0}));
  EXPECT_EQ(ids("Isolated"), (Ids{0, 1, 1, 0}));
  EXPECT_EQ(ids("Contiguous"), (Ids{0, 4, 0}));
  EXPECT_EQ(ids("MergedWithPrevious"), (Ids{2, 1, 0}));
  EXPECT_EQ(ids("MergedWithNext"), (Ids{0, 1, 3}));
  EXPECT_EQ(ids("Removed", true), (Ids{1, 1}));
}

TEST(PreTokenizer, WhiteSpaceOfAPatternIsUnicodesWithoutTheMongolianVowelSeparator) {
  json file = small_tokenizer({"a"});
  file["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "\\s+"}}}, {"behavior", "Isolated"}, {"invert", false}};
  file["model"]["ignore_merges"] = true;
  file["model"]["vocab"]["a\u180ea"] = 1;
  file["model"]["vocab"]["\u3000"] = 2;

  EXPECT_EQ(open_tokenizer(file).encode("a\u180ea\u3000a"), (Ids{1, 2, 0}));
}

TEST(PreTokenizer, MetaspaceSchemesDifferAfterASpecialToken) {
  json file = small_tokenizer({"▁a", "a", "▁", "<s>"}, {{"▁", "a"}});
  file["added_tokens"] = {added_token(3, "<s>")};
  const auto ids = [&](const std::string& scheme, const std::string& text) {
    file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", true}};
    return open_tokenizer(file).encode(text);
  };

  EXPECT_EQ(ids("always", "a<s>a"), (Ids{0, 3, 0}));
  EXPECT_EQ(ids("first", "a<s>a"), (Ids{0, 3, 1}));
  EXPECT_EQ(ids("first", "<s>a"), (Ids{3, 1}));
  EXPECT_EQ(ids("never", "a<s>a"), (Ids{1, 3, 1}));
  EXPECT_EQ(ids("always", " a"), (Ids{0}));
  EXPECT_EQ(ids("always", "a  a"), (Ids{0, 2, 0}));
}

TEST(PreTokenizer, MetaspaceOfOldFilesGoesByAddPrefixSpace) {
  json file = small_tokenizer({"▁a", "a", "▁"}, {{"▁", "a"}});
  file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"add_prefix_space", true}};

  EXPECT_EQ(open_tokenizer(file).encode("a"), (Ids{0}));
  file["pre_tokenizer"]["add_prefix_space"] = false;
  EXPECT_EQ(open_tokenizer(file).encode("a"), (Ids{1}));
}

TEST(Normalizer, PrependGoesBeforeEveryPieceAlsoBeforeASpace) {
  json file = small_tokenizer({"▁", "a", "<s>"});
  file["added_tokens"] = {added_token(2, "<s>")};
  file["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers", {{{"type", "Prepend"}, {"prepend", "▁"}}, {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}};

  EXPECT_EQ(open_tokenizer(file).encode("a<s> a"), (Ids{0, 1, 2, 0, 0, 1}));
  EXPECT_EQ(open_tokenizer(file).encode(""), Ids{});
}

TEST(Normalizer, NfcComposes) {
  json file = small_tokenizer({"é", "e", "\u0301"});

  EXPECT_EQ(open_tokenizer(file).encode("e\u0301"), (Ids{1, 2}));
  file["normalizer"] = {{"type", "NFC"}};
  EXPECT_EQ(open_tokenizer(file).encode("e\u0301"), (Ids{0}));
}

TEST(AddedTokens, TheLongestOfTheLeftmostIsFound) {
  json file = small_tokenizer({"a", "<", "|"});
  file["added_tokens"] = {added_token(3, "<|"), added_token(4, "<|a|>"), added_token(5, "a|")};

  EXPECT_EQ(open_tokenizer(file).encode("<|a|><|a|"), (Ids{4, 3, 5}));
  EXPECT_EQ(open_tokenizer(file).vocab_size(), 6);
}

TEST(AddedTokens, StripsTakeWhiteSpaceAlong) {
  json file = small_tokenizer({"a", " "});
  file["added_tokens"] = {added_token(2, "<m>")};

  EXPECT_EQ(open_tokenizer(file).encode("a  <m>  a"), (Ids{0, 1, 1, 2, 1, 1, 0}));
  file["added_tokens"][0]["lstrip"] = true;
  EXPECT_EQ(open_tokenizer(file).encode("a  <m>  a"), (Ids{0, 2, 1, 1, 0}));
  file["added_tokens"][0]["rstrip"] = true;
  EXPECT_EQ(open_tokenizer(file).encode("a  <m>  <m>a"), (Ids{0, 2, 2, 0}));
}

TEST(AddedTokens, ASingleWordHasNoWordBesideIt) {
  json file = small_tokenizer({"a", "b", " ", "ab"});
  file["added_tokens"] = {added_token(3, "ab")};
  file["added_tokens"][0]["single_word"] = true;

  EXPECT_EQ(open_tokenizer(file).encode("ab aab ab"), (Ids{3, 2, 0, 0, 1, 2, 3}));
}

TEST(AddedTokens, NormalizedOnesAreFoundInNormalizedText) {
  json file = small_tokenizer({"x", "y"});
  file["normalizer"] = {{"type", "Lowercase"}};
  file["added_tokens"] = {added_token(2, "AB", /*is_normalized=*/true), added_token(3, "X")};

  EXPECT_EQ(open_tokenizer(file).encode("aByxX"), (Ids{2, 1, 0, 3}));
}

TEST(Template, PutsSpecialTokensAroundTheText) {
  json file = small_tokenizer({"a", "<s>", "</s>"});
  const json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, eos = {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}};
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {bos, text, eos}},
      {"pair", json::array()},
      {"special_tokens",
       {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}, {"</s>", {{"id", "</s>"}, {"ids", {2}}, {"tokens", {"</s>"}}}}}}};

  EXPECT_EQ(open_tokenizer(file).encode("aa"), (Ids{1, 0, 0, 2}));
  EXPECT_EQ(open_tokenizer(file).encode(""), (Ids{1, 2}));
  EXPECT_EQ(open_tokenizer(file).encode("aa", /*add_special_tokens=*/false), (Ids{0, 0}));
}

}  // namespace
}  // namespace ptq::test
