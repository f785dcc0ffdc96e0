// Calibration files to rows of token ids. The tokenizer here has one token for each letter, so that rows can be read off the text.

#include "checkpoint/text_data.h"

#include <gtest/gtest.h>

#include "checkpoint/safetensors.h"
#include "kernels/core/thread_pool.h"
#include "tests/support/shared_folder.h"
#include "tests/unit/tokenizer/tokenizer_files.h"

namespace ptq::test {
namespace {

using checkpoint::load_rows;
using checkpoint::TextRequest;
using Rows = std::vector<std::vector<int32_t>>;

constexpr int32_t kEos = 9;

/// a = 1, b = 2 ... f = 6, and 7 before each text where adds_bos.
checkpoint::Tokenizer letters(bool adds_bos = false) {
  json file = small_tokenizer({"<unk>", "a", "b", "c", "d", "e", "f", "<s>"});
  if (adds_bos) {
    file["post_processor"] = {{"type", "TemplateProcessing"},
                              {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                              {"special_tokens", {{"<s>", {{"ids", {7}}}}}}};
  }
  return open_tokenizer(file);
}

TextRequest request(const std::string& file, int64_t samples, int64_t sequence_length, bool is_packed = true) {
  TextRequest request;
  request.files = {file};
  request.samples = samples;
  request.sequence_length = sequence_length;
  request.pack = is_packed;
  request.eos_id = kEos;
  return request;
}

Error failure(const TextRequest& request) {
  const auto tokenizer = letters();
  return error_of([&] { load_rows(request, &tokenizer); });
}

class TextData : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) { return folder_.write(name, content); }
  ScratchFolder folder_;
};

TEST_F(TextData, PackJoinsDocumentsByEosAndDropsTheLastPartialRow) {
  const auto file = write("a.jsonl", "{\"text\": \"abc\"}\n\n  \r\n{\"text\": \"de\"}\n{\"text\": \"f\"}\n");
  const auto tokenizer = letters();

  EXPECT_EQ(load_rows(request(file, 0, 4), &tokenizer), (Rows{{1, 2, 3, kEos}, {4, 5, kEos, 6}}));
}

TEST_F(TextData, PackAddsBosToTextButNotToIds) {
  const auto file = write("a.jsonl", "{\"text\": \"a\"}\n{\"input_ids\": [2, 3]}\n");
  const auto tokenizer = letters(/*adds_bos=*/true);

  EXPECT_EQ(load_rows(request(file, 0, 6), &tokenizer), (Rows{{7, 1, kEos, 2, 3, kEos}}));
}

TEST_F(TextData, PackGoesOnAcrossFiles) {
  TextRequest wanted = request(write("a.jsonl", "{\"text\": \"ab\"}"), 0, 5);
  wanted.files.push_back(write("b.txt", "cd"));
  const auto tokenizer = letters();

  EXPECT_EQ(load_rows(wanted, &tokenizer), (Rows{{1, 2, kEos, 3, 4}}));
}

TEST_F(TextData, WithoutPackADocumentIsARowCutAtTheLength) {
  const auto file =
      write("a.jsonl", "{\"text\": \"abcdef\"}\n{\"text\": \"\"}\n{\"input_ids\": []}\n{\"text\": \"ab\"}\n{\"text\": \"abc\"}\n");
  const auto tokenizer = letters();
  TextRequest wanted = request(file, 0, 3, /*is_packed=*/false);
  wanted.eos_id.reset();

  EXPECT_EQ(load_rows(wanted, &tokenizer), (Rows{{1, 2, 3}, {1, 2}, {1, 2, 3}}));
  wanted.drop_short = true;
  EXPECT_EQ(load_rows(wanted, &tokenizer), (Rows{{1, 2, 3}, {1, 2, 3}}));
}

TEST_F(TextData, SamplesStopTheReadingBeforeALaterFault) {
  const auto file = write("a.jsonl", "{\"text\": \"abcdef\"}\nnot JSON\n");
  const auto tokenizer = letters();

  EXPECT_EQ(load_rows(request(file, 2, 3), &tokenizer), (Rows{{1, 2, 3}, {4, 5, 6}}));
  EXPECT_TRUE(failure(request(file, 3, 3)).where().ends_with("a.jsonl:2"));
}

TEST_F(TextData, TxtIsOneDocument) {
  const auto file = write("a.txt", "ab\ncd");
  const auto tokenizer = letters();

  EXPECT_EQ(load_rows(request(file, 0, 10, /*is_packed=*/false), &tokenizer), (Rows{{1, 2, 3, 4}}));
}

TEST_F(TextData, SafetensorsRowsAreDocuments) {
  const std::vector<int64_t> wide = {1, 2, 3, 4, 5, 6};
  const std::vector<int32_t> narrow = {8, 7};
  checkpoint::write_safetensors(folder_.path("a.safetensors"), {{"input_ids", DType::kI64, {2, 3}}}, {wide.data()});
  checkpoint::write_safetensors(folder_.path("b.safetensors"), {{"input_ids", DType::kI32, {2}}}, {narrow.data()});
  TextRequest wanted = request(folder_.path("a.safetensors"), 0, 3, /*is_packed=*/false);
  wanted.files.push_back(folder_.path("b.safetensors"));

  EXPECT_EQ(load_rows(wanted, nullptr), (Rows{{1, 2, 3}, {4, 5, 6}, {8, 7}}));
  wanted.pack = true;
  EXPECT_EQ(load_rows(wanted, nullptr), (Rows{{1, 2, 3}, {kEos, 4, 5}, {6, kEos, 8}}));
}

TEST_F(TextData, SafetensorsWithoutUsableIdsAreRefused) {
  const std::vector<float> floats = {1, 2};
  const std::vector<int32_t> ids = {1, -2};
  const auto file = folder_.path("a.safetensors");
  const auto fault = [&](const std::string& name, DType dtype, const Shape& shape, const void* data) {
    checkpoint::write_safetensors(file, {{name, dtype, shape}}, {data});
    const Error error = failure(request(file, 1, 1));
    EXPECT_EQ(error.kind(), ErrorKind::kUser) << error.report();
    return error.report();
  };

  EXPECT_NE(fault("ids", DType::kI32, {2}, ids.data()).find("no tensor input_ids"), std::string::npos);
  EXPECT_NE(fault("input_ids", DType::kF32, {2}, floats.data()).find("F32"), std::string::npos);
  EXPECT_NE(fault("input_ids", DType::kI32, {1, 1, 2}, ids.data()).find("[1, 1, 2]"), std::string::npos);
  EXPECT_NE(fault("input_ids", DType::kI32, {0, 2}, ids.data()).find("empty"), std::string::npos);
  EXPECT_NE(fault("input_ids", DType::kI32, {1, 2}, ids.data()).find("row 0"), std::string::npos);
}

struct BadLine {
  const char* name;
  const char* line;
  const char* message;
};

void PrintTo(const BadLine& bad, std::ostream* out) { *out << bad.name; }

class TextLine : public testing::TestWithParam<BadLine> {};

TEST_P(TextLine, IsAUserErrorWithFileAndLine) {
  const ScratchFolder folder;
  const auto file = folder.write("data.jsonl", std::string("{\"text\": \"a\"}\n\n") + GetParam().line + "\n");

  const Error error = failure(request(file, 100, 4));

  EXPECT_EQ(error.kind(), ErrorKind::kUser);
  EXPECT_TRUE(error.where().ends_with("data.jsonl:3")) << error.report();
  EXPECT_NE(error.message().find(GetParam().message), std::string::npos) << error.report();
  EXPECT_FALSE(error.fix().empty()) << error.report();
}

INSTANTIATE_TEST_SUITE_P(
    Faults, TextLine,
    testing::Values(BadLine{"not_json", "{\"text\": ", "not JSON"}, BadLine{"not_an_object", "[1, 2]", "not an object"},
                    BadLine{"neither", "{\"content\": \"a\"}", "neither"}, BadLine{"text_is_no_string", "{\"text\": 3}", "\"text\""},
                    BadLine{"messages", "{\"messages\": []}", "chat messages are not supported yet"},
                    BadLine{"ids_are_no_list", "{\"input_ids\": 3}", "not a list"},
                    BadLine{"negative_id", "{\"input_ids\": [1, -1]}", "-1"}, BadLine{"fraction", "{\"input_ids\": [1.5]}", "1.5"},
                    BadLine{"list_in_ids", "{\"input_ids\": [1, [2]]}", "array"},
                    BadLine{"huge_id", "{\"input_ids\": [18446744073709551615]}", "18446744073709551615"},
                    BadLine{"not_utf8", "{\"text\": \"\xFF\"}", "not UTF-8"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST_F(TextData, FilesWithoutDocumentsAreRefused) {
  for (const char* name : {"a.jsonl", "a.txt"}) EXPECT_EQ(failure(request(write(name, ""), 1, 4)).kind(), ErrorKind::kUser);
  EXPECT_NE(failure(request(write("b.jsonl", "\n \n"), 1, 4)).message().find("no documents"), std::string::npos);
}

TEST_F(TextData, TxtThatIsNotUtf8NamesTheLine) {
  EXPECT_TRUE(failure(request(write("a.txt", "ab\nc\n\xC3("), 1, 4)).where().ends_with("a.txt:3"));
}

TEST_F(TextData, UnknownExtensionsNameTheKnownOnes) {
  EXPECT_NE(failure(request(write("a.parquet", "x"), 1, 4)).fix().find(".jsonl, .txt, .safetensors"), std::string::npos);
}

TEST_F(TextData, FilesThatCannotBeReadAreUserErrors) {
  for (const char* name : {"absent.jsonl", "absent.txt", "absent.safetensors"})
    EXPECT_EQ(failure(request(folder_.path(name), 1, 4)).kind(), ErrorKind::kUser);
  std::filesystem::create_directories(folder_.path("folder.txt"));
  EXPECT_EQ(failure(request(folder_.path("folder.txt"), 1, 4)).kind(), ErrorKind::kUser);
  EXPECT_EQ(failure(TextRequest{}).kind(), ErrorKind::kUser);

  // The second file is looked at although the first has rows enough.
  TextRequest wanted = request(write("a.txt", "abcdef"), 1, 4);
  wanted.files.push_back(folder_.path("absent.txt"));
  EXPECT_TRUE(failure(wanted).where().ends_with("absent.txt"));
}

TEST_F(TextData, TooFewRowsSayHowManyThereAre) {
  const auto file = write("a.txt", "abcdef");

  const Error packed = failure(request(file, 3, 3));
  EXPECT_NE(packed.message().find("only 2 rows of 3 tokens"), std::string::npos) << packed.report();
  EXPECT_NE(packed.fix().find("lower samples to 2"), std::string::npos) << packed.report();

  const Error none = failure(request(file, 0, 100));
  EXPECT_NE(none.message().find("only 0 rows of 100 tokens"), std::string::npos) << none.report();
  EXPECT_NE(none.fix().find("lower sequence_length"), std::string::npos) << none.report();
}

TEST_F(TextData, IdsOutsideTheVocabularyAreRefused) {
  TextRequest wanted = request(write("a.jsonl", "{\"text\": \"a\"}\n{\"input_ids\": [1, 40]}\n"), 1, 4);
  wanted.vocab_size = 40;

  const Error error = failure(wanted);

  EXPECT_EQ(error.kind(), ErrorKind::kUser);
  EXPECT_TRUE(error.where().ends_with("a.jsonl:2")) << error.report();
  wanted.vocab_size = 8;
  EXPECT_NE(failure(wanted).message().find("EOS id 9"), std::string::npos);
}

TEST_F(TextData, TextNeedsATokenizerAndPackAnEos) {
  TextRequest wanted = request(write("a.txt", "abc"), 1, 2);

  EXPECT_EQ(error_of([&] { load_rows(wanted, nullptr); }).kind(), ErrorKind::kUser);
  wanted.eos_id.reset();
  EXPECT_NE(failure(wanted).message().find("EOS"), std::string::npos);
}

TEST_F(TextData, RowsDoNotDependOnTheNumberOfThreads) {
  std::string lines;
  for (int i = 0; i < 500; ++i)
    lines += "{\"text\": \"" + std::string(static_cast<size_t>(i % 17), static_cast<char>('a' + i % 6)) + "\"}\n";
  const auto file = write("a.jsonl", lines);
  const auto tokenizer = letters();
  const auto rows = [&](int threads, int64_t samples) {
    set_num_threads(threads);
    auto result = load_rows(request(file, samples, 10), &tokenizer);
    set_num_threads(1);
    return result;
  };

  EXPECT_EQ(rows(1, 0), rows(2, 0));
  EXPECT_EQ(rows(1, 77), rows(2, 77));
  const Rows all = rows(2, 0), some = rows(2, 77);
  EXPECT_EQ(some, Rows(all.begin(), all.begin() + 77));
}

TEST_F(TextData, RealTextGivesTheSameRowsOnOneAndTwoThreads) {
  PTQ_NEEDS_SHARED(shared);
  const auto tokenizer = checkpoint::Tokenizer::open(shared + "/fixtures/models/llama");
  const auto wanted = request(shared + "/fixtures/text/calib.jsonl", 512, 512);

  const Rows one = load_rows(wanted, &tokenizer);
  set_num_threads(2);
  const Rows two = load_rows(wanted, &tokenizer);
  set_num_threads(1);

  EXPECT_EQ(one.size(), 512u);
  EXPECT_EQ(one, two);
}

}  // namespace
}  // namespace ptq::test
