#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "checkpoint/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/make_safetensors.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::entry;
using test::expect_error;
using test::object;
using test::safetensors_bytes;

struct Case {
  const char* name;
  std::string bytes;
  std::string words;  ///< of the error; of an accepted file: none
};

std::string print_name(const testing::TestParamInfo<Case>& info) { return info.param.name; }

std::string one(const std::string& text, const std::string& data) { return safetensors_bytes(object({text}), data); }
const std::string kEight(8, 'x');

std::vector<Case> refused() {
  const std::string good = entry("w", "F32", "[2]", 0, 8);
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "[";
  return {
      {"EmptyFile", "", "fewer than the 8"},
      {"SevenBytes", "1234567", "fewer than the 8"},
      {"HeaderLongerThanAllowed", safetensors_bytes(100'000'001, object({good}), kEight), "100,000,000"},
      {"HeaderLengthOfAllOnes", safetensors_bytes(~0ull, object({good}), kEight), "100,000,000"},
      {"HeaderLengthWithSignBit", safetensors_bytes(1ull << 63, object({good}), kEight), "100,000,000"},
      {"HeaderLongerThanFile", safetensors_bytes(1000, object({good}), kEight), "truncated"},
      {"HeaderOfNoBytes", safetensors_bytes("", ""), "not JSON"},
      {"BadUtf8InName", one(entry("w\xff", "F32", "[2]", 0, 8), kEight), "not JSON"},
      {"LoneSurrogateInName", one(entry("w\\ud800", "F32", "[2]", 0, 8), kEight), "not JSON"},
      {"BrokenJson", safetensors_bytes("{\"w\":", ""), "not JSON"},
      {"TextAfterTheObject", safetensors_bytes("{}x", ""), "not JSON"},
      {"NulAfterTheObject", safetensors_bytes(std::string("{}\0\0", 4), ""), "NUL"},
      {"ByteOrderMark", safetensors_bytes("\xEF\xBB\xBF{}", ""), "byte order mark"},
      {"HeaderThatIsAList", safetensors_bytes("[]", ""), "instead of a JSON object"},
      {"HeaderThatIsANumber", safetensors_bytes("7", ""), "instead of a JSON object"},
      {"DeepLists", safetensors_bytes("{\"w\":{\"extra\":" + deep, ""), "deeper"},
      {"DeepObjects",
       one("\"w\":{\"extra\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1",
           ""),
       "deeper"},
      {"UnknownDtype", one(entry("w", "F33", "[2]", 0, 8), kEight), "'w' has the unknown dtype 'F33'"},
      {"DtypeThisProjectHasNoUseFor", one(entry("w", "F4", "[16]", 0, 8), kEight), "unknown dtype 'F4'"},
      {"DtypeInLowerCase", one(entry("w", "f32", "[2]", 0, 8), kEight), "unknown dtype"},
      {"DtypeThatIsANumber", one(R"("w":{"dtype":1,"shape":[2],"data_offsets":[0,8]})", kEight), "dtype"},
      {"MetadataWithANumber", one("\"__metadata__\":{\"a\":1}", ""), "'a' is a number instead of a string"},
      {"MetadataWithNull", one("\"__metadata__\":{\"a\":null}", ""), "instead of a string"},
      {"MetadataWithAnObject", one("\"__metadata__\":{\"a\":{}}", ""), "instead of a string"},
      {"MetadataThatIsAString", one("\"__metadata__\":\"pt\"", ""), "metadata is a string"},
      {"MetadataWithOneKeyTwice", one(R"("__metadata__":{"a":"1","a":"2"})", ""), "twice"},
      {"MetadataTwice", one(R"("__metadata__":{},"__metadata__":{})", ""), "twice"},
      {"NameTwice", one(good + "," + entry("w", "F32", "[2]", 8, 16), kEight + kEight), "'w' twice"},
      {"NameTwiceWithTheSameBytes", one(good + "," + good, kEight), "'w' twice"},
      {"FieldTwice", one(R"("w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})", kEight), "'dtype' twice"},
      {"NulInName", one(entry("w\\u0000x", "F32", "[2]", 0, 8), kEight), "NUL"},
      {"NameOf4097Bytes", one(entry(std::string(4097, 'n'), "F32", "[2]", 0, 8), kEight), "4096"},
      {"NineDimensions", one(entry("w", "F32", "[2,1,1,1,1,1,1,1,1]", 0, 8), kEight), "more than 8 dimensions"},
      {"NoDtype", one(R"("w":{"shape":[2],"data_offsets":[0,8]})", kEight), "has no dtype"},
      {"NoShape", one(R"("w":{"dtype":"F32","data_offsets":[0,8]})", kEight), "has no shape"},
      {"NoOffsets", one(R"("w":{"dtype":"F32","shape":[2]})", kEight), "has no data_offsets"},
      {"OneOffset", one(R"("w":{"dtype":"F32","shape":[2],"data_offsets":[8]})", kEight), "2 data_offsets"},
      {"ThreeOffsets", one(R"("w":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})", kEight), "2 data_offsets"},
      {"EntryThatIsAList", one(R"("w":[])", ""), "instead of an object"},
      {"EntryThatIsNull", one(R"("w":null)", ""), "instead of an object"},
      {"ShapeThatIsANumber", one(R"("w":{"dtype":"F32","shape":2,"data_offsets":[0,8]})", kEight), "shape"},
      {"ShapeWithAList", one(R"("w":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})", kEight), "shape"},
      {"ShapeWithAnObject", one(R"("w":{"dtype":"F32","shape":[{}],"data_offsets":[0,8]})", kEight), "shape"},
      {"ShapeWithAString", one(R"("w":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]})", kEight), "shape"},
      {"NegativeDimension", one(entry("w", "F32", "[-2]", 0, 8), kEight), "negative"},
      {"NegativeDimensions", one(entry("w", "F32", "[-2,-1]", 0, 8), kEight), "negative"},
      {"FractionalDimension", one(entry("w", "F32", "[2.0]", 0, 8), kEight), "unsigned 64-bit"},
      {"DimensionBeyond64Bits", one(entry("w", "F32", "[18446744073709551616]", 0, 8), kEight), "unsigned 64-bit"},
      {"DimensionBeyond63Bits", one(entry("w", "F32", "[18446744073709551615]", 0, 8), kEight), "overflows"},
      {"ProductThatOverflows", one(entry("w", "U8", "[4294967296,4294967296]", 0, 8), kEight), "overflows"},
      {"ProductThatOverflowsToTheRightSize", one(entry("w", "U8", "[9223372036854775808,2]", 0, 0), ""), "overflows"},
      {"ProductThatOverflowsByTheDtype", one(entry("w", "F64", "[2305843009213693952]", 0, 0), ""), "overflows"},
      {"FewerBytesThanTheShape", one(entry("w", "F32", "[3]", 0, 8), kEight), "needs 12"},
      {"MoreBytesThanTheShape", one(entry("w", "F32", "[1]", 0, 8), kEight), "needs 4"},
      {"BytesForAnEmptyShape", one(entry("w", "F32", "[0]", 0, 8), kEight), "needs 0"},
      {"EndBeforeBegin", one(entry("w", "F32", "[2]", 8, 0), kEight), "ends before it begins"},
      {"HugeOffsetsOfTheRightDistance", one(entry("w", "F32", "[2]", 18446744073709551600ull, 18446744073709551608ull), kEight),
       "truncated"},
      {"NotStartingAtZero", one(entry("w", "F32", "[2]", 8, 16), kEight + kEight), "gap of 8 bytes before tensor 'w'"},
      {"Overlap", one(good + "," + entry("v", "F32", "[2]", 4, 12), kEight + "1234"), "overlaps"},
      {"TwoNamesOfTheSameBytes", one(good + "," + entry("v", "F32", "[2]", 0, 8), kEight), "overlaps"},
      {"EmptyTensorInsideAnother", one(good + "," + entry("v", "F32", "[0]", 4, 4), kEight), "overlaps"},
      {"Gap", one(good + "," + entry("v", "F32", "[2]", 12, 20), std::string(20, 'x')), "gap of 4 bytes before tensor 'v'"},
      {"TrailingBytes", one(good, kEight + "x"), "1 bytes after its last tensor"},
      {"DataWithoutTensors", safetensors_bytes("{}", "x"), "after its last tensor"},
      {"TruncatedData", one(good, "1234567"), "truncated"},
      {"NoDataAtAll", one(good, ""), "truncated"},
  };
}

class RefusedSafetensors : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Files, RefusedSafetensors, testing::ValuesIn(refused()), print_name);

TEST_P(RefusedSafetensors, ThrowsADataErrorThatNamesTheFile) {
  const test::TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", GetParam().bytes);

  expect_error(ErrorKind::kData, GetParam().words, [&] { read_safetensors_header(path); });
  expect_error(ErrorKind::kData, path, [&] { read_safetensors_header(path); });
}

std::vector<Case> accepted() {
  const std::string good = entry("w", "F32", "[2]", 0, 8);
  return {
      {"NotPaddedToEight", one(good, kEight), ""},
      {"LeadingSpaces", safetensors_bytes("  \n" + object({good}), kEight), ""},
      {"TrailingSpaces", safetensors_bytes(object({good}) + "     ", kEight), ""},
      {"UnknownFields",
       one(R"("w":{"a":{"shape":[1],"b":[[{}]]},"dtype":"F32","c":null,"d":-1.5,"shape":[2],"e":true,"data_offsets":[0,8]})", kEight), ""},
      {"FieldsInAnotherOrder", one(R"("w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"})", kEight), ""},
      {"EmptyName", one(entry("", "F32", "[2]", 0, 8), kEight), ""},
      {"NameOf4096Bytes", one(entry(std::string(4096, 'n'), "F32", "[2]", 0, 8), kEight), ""},
      {"KeysNotInOffsetOrder", one(entry("b", "U8", "[4]", 4, 8) + "," + entry("a", "U8", "[4]", 0, 4), kEight), ""},
      {"NoTensors", safetensors_bytes("{}", ""), ""},
      {"OnlyMetadata", one("\"__metadata__\":{\"format\":\"pt\"}", ""), ""},
      {"EmptyMetadata", one("\"__metadata__\":{}," + good, kEight), ""},
      {"Scalar", one(entry("s", "F64", "[]", 0, 8), kEight), ""},
      {"EmptyTensors", one(entry("b", "F32", "[0,7]", 0, 0) + "," + good + "," + entry("a", "I64", "[3,0]", 8, 8), kEight), ""},
      {"EightDimensions", one(entry("w", "F32", "[2,1,1,1,1,1,1,1]", 0, 8), kEight), ""},
      {"EscapesInNames", one(entry("w\\u00e9\\\"", "F32", "[2]", 0, 8), kEight), ""},
  };
}

class AcceptedSafetensors : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Files, AcceptedSafetensors, testing::ValuesIn(accepted()), print_name);

TEST_P(AcceptedSafetensors, TilesTheData) {
  const test::TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", GetParam().bytes);

  const SafetensorsHeader header = read_safetensors_header(path);

  int64_t at = header.data_begin;
  for (const TensorEntry& tensor : header.tensors) {
    EXPECT_EQ(tensor.offset, at) << tensor.name;
    EXPECT_EQ(tensor.bytes, element_count(tensor.shape) * dtype_bytes(tensor.dtype)) << tensor.name;
    EXPECT_EQ(tensor.file, "model.safetensors");
    at += tensor.bytes;
  }
  EXPECT_EQ(at, header.file_bytes);
}

TEST(Safetensors, MetadataAndEntriesAreReadAsWritten) {
  const test::TemporaryFolder folder;
  const std::string path = folder.write("a.safetensors", one(R"("__metadata__":{"format":"pt","note":"é"},)" +
                                                                 entry("b", "BF16", "[2,2]", 4, 12) + "," + entry("a", "I32", "[]", 0, 4),
                                                             std::string(12, 'x')));

  const SafetensorsHeader header = read_safetensors_header(path);

  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"note", "é"}}));
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[0].dtype, DType::kI32);
  EXPECT_EQ(header.tensors[0].shape, Shape{});
  EXPECT_EQ(header.tensors[1].shape, (Shape{2, 2}));
  EXPECT_EQ(header.tensors[1].offset, header.data_begin + 4);
}

TEST(Safetensors, EveryDtypeOfTheProjectIsReadWithItsWidth) {
  const test::TemporaryFolder folder;
  for (const char* dtype :
       {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL"}) {
    const auto bytes = static_cast<uint64_t>(3 * dtype_bytes(*dtype_from_name(dtype)));
    const std::string path = folder.write("a.safetensors", one(entry("w", dtype, "[3]", 0, bytes), std::string(bytes, 'x')));

    EXPECT_EQ(dtype_name(read_safetensors_header(path).tensors.at(0).dtype), dtype);
  }
}

TEST(Safetensors, AFolderOrAPipeIsNoSafetensorsFile) {
  const test::TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);

  expect_error(ErrorKind::kData, "not a regular file", [&] { read_safetensors_header(folder.path()); });
  expect_error(ErrorKind::kData, "not a regular file", [&] { read_safetensors_header(folder / "pipe"); });
  expect_error(ErrorKind::kSystem, "No such file", [&] { read_safetensors_header(folder / "absent"); });
}

TEST(Safetensors, NamesInMessagesHoldNoControlBytes) {
  const test::TemporaryFolder folder;
  const std::string path = folder.write("a.safetensors", one(entry("a\\u001b[31m" + std::string(1000, 'x'), "F33", "[2]", 0, 8), kEight));

  expect_error(ErrorKind::kData, "'a?[31mxxx", [&] { read_safetensors_header(path); });
  expect_error(ErrorKind::kData, "xxx...'", [&] { read_safetensors_header(path); });
}

TEST(Safetensors, AWrittenHeaderIsPaddedToEightAndReadsBack) {
  const std::vector<float> wide = {1, 2, 3};
  const int64_t scalar = 7;
  const test::TemporaryFolder folder;
  const std::vector<OutputTensor> tensors = {{"s", DType::kI64, {}}, {"quote\" and é", DType::kF32, {3, 1}}, {"none", DType::kU8, {0, 4}}};

  write_safetensors(folder / "a.safetensors", tensors, {&scalar, wide.data(), nullptr});

  const SafetensorsHeader header = read_safetensors_header(folder / "a.safetensors");
  EXPECT_EQ(header.data_begin % 8, 0);
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(header.file_bytes, header.data_begin + 20);
  EXPECT_EQ(make_safetensors_header(tensors), read_text(folder / "a.safetensors").substr(0, static_cast<size_t>(header.data_begin)));
  EXPECT_EQ(make_safetensors_header({{"w", DType::kBF16, {2, 3}}}).substr(8),
            R"({"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}       )");
}

}  // namespace
}  // namespace ptq::checkpoint
