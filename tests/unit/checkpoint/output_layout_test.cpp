#include "checkpoint/output_layout.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "checkpoint/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

std::vector<OutputTensor> mixed_tensors() {
  return {{"model.embed.weight", DType::kBF16, {33, 7}},  {"layer.0.weight", DType::kU8, {13, 5}},
          {"layer.0.weight_scale", DType::kF32, {13, 1}}, {"layer.0.input_scale", DType::kF32, {}},
          {"layer.0.none", DType::kF32, {0, 3}},          {"layer.1.weight", DType::kF8E4M3, {11, 9}},
          {"layer.1.position", DType::kI64, {3}},         {"layer.1.a", DType::kBF16, {5}},
          {"layer.2.weight", DType::kU8, {700}},          {"lm_head.weight", DType::kBF16, {17, 7}}};
}

std::vector<std::string> names_of(const ShardFile& shard) {
  std::vector<std::string> names;
  for (const OutputTensor& tensor : shard.tensors) names.push_back(tensor.name);
  return names;
}

TEST(OutputLayout, OneShardHasThePlainNameAndNoIndex) {
  const OutputLayout layout = OutputLayout::plan(mixed_tensors(), 10'000'000'000);

  ASSERT_EQ(layout.shards().size(), 1u);
  EXPECT_EQ(layout.shards()[0].name, "model.safetensors");
  EXPECT_EQ(layout.index_json(), "");
}

TEST(OutputLayout, WideElementsComeFirstThenNames) {
  const OutputLayout layout = OutputLayout::plan(
      {{"d", DType::kU8, {3}}, {"b", DType::kBF16, {2}}, {"c", DType::kF32, {}}, {"a", DType::kBF16, {1}}, {"e", DType::kI64, {1}}}, 1000);

  const ShardFile& shard = layout.shards()[0];
  EXPECT_EQ(names_of(shard), (std::vector<std::string>{"e", "c", "a", "b", "d"}));
  const auto data = static_cast<int64_t>(shard.header.size());
  EXPECT_EQ(data % 8, 0);
  EXPECT_EQ(layout.place("e").offset, data);
  EXPECT_EQ(layout.place("c").offset, data + 8);
  EXPECT_EQ(layout.place("a").offset, data + 12);
  EXPECT_EQ(layout.place("b").offset, data + 14);
  EXPECT_EQ(layout.place("d").offset, data + 18);
  EXPECT_EQ(shard.bytes, data + 21);
  EXPECT_EQ(layout.tensor_bytes(), 21);
}

TEST(OutputLayout, AShardIsCutWhenTheNextTensorWouldOverfillIt) {
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kU8, {60}},
                                                  {"b", DType::kU8, {40}},
                                                  {"c", DType::kU8, {1}},
                                                  {"huge", DType::kU8, {500}},
                                                  {"none", DType::kU8, {0}},
                                                  {"d", DType::kU8, {99}}},
                                                 100);

  ASSERT_EQ(layout.shards().size(), 4u);
  EXPECT_EQ(names_of(layout.shards()[0]), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(names_of(layout.shards()[1]), (std::vector<std::string>{"c"}));
  EXPECT_EQ(names_of(layout.shards()[2]), (std::vector<std::string>{"huge"}));
  EXPECT_EQ(names_of(layout.shards()[3]), (std::vector<std::string>{"d", "none"}));
  EXPECT_EQ(layout.shards()[0].name, "model-00001-of-00004.safetensors");
  EXPECT_EQ(layout.shards()[3].name, "model-00004-of-00004.safetensors");
}

TEST(OutputLayout, TheIndexNamesEveryTensorSortedAndTheTotalSize) {
  const OutputLayout layout = OutputLayout::plan({{"z", DType::kU8, {60}}, {"a", DType::kU8, {60}}}, 100);

  EXPECT_EQ(layout.index_json(), R"({
  "metadata": {
    "total_size": 120
  },
  "weight_map": {
    "a": "model-00002-of-00002.safetensors",
    "z": "model-00001-of-00002.safetensors"
  }
}
)");
}

TEST(OutputLayout, NamesMustBeUniqueAndKnown) {
  test::expect_error(ErrorKind::kBug, "'a' is there twice", [] {
    OutputLayout::plan({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}, 100);
  });
  test::expect_error(ErrorKind::kBug, "'b' has no place", [] { OutputLayout::plan({{"a", DType::kU8, {1}}}, 100).place("b"); });
}

TEST(OutputLayout, NoTensorsMakeOneEmptyFile) {
  const OutputLayout layout = OutputLayout::plan({}, 100);
  const test::TemporaryFolder folder;

  ShardWriter::create(folder.path(), layout);

  EXPECT_TRUE(read_safetensors_header(folder / "model.safetensors").tensors.empty());
}

/// Writes a checkpoint in small pieces in random order and reads it back.
class WrittenCheckpoint : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(ShardSizes, WrittenCheckpoint, testing::Values(1, 300, 700, 1'000'000));

TEST_P(WrittenCheckpoint, ReadsBackWhatWasWrittenInPiecesInAnyOrder) {
  const test::TemporaryFolder folder;
  std::mt19937 random(7);
  const OutputLayout layout = OutputLayout::plan(mixed_tensors(), GetParam());
  std::map<std::string, std::vector<uint8_t>> data;
  struct Piece {
    std::string name;
    int64_t offset, bytes;
  };
  std::vector<Piece> pieces;
  for (const OutputTensor& tensor : mixed_tensors()) {
    auto& bytes = data[tensor.name];
    for (int64_t i = 0; i < tensor.bytes(); ++i) bytes.push_back(static_cast<uint8_t>(random()));
    for (int64_t at = 0; at < tensor.bytes();) {
      const int64_t length = std::min<int64_t>(tensor.bytes() - at, 1 + static_cast<int64_t>(random() % 50));
      pieces.push_back({tensor.name, at, length});
      at += length;
    }
    pieces.push_back({tensor.name, tensor.bytes(), 0});
  }
  std::shuffle(pieces.begin(), pieces.end(), random);

  ShardWriter::create(folder.path(), layout);
  ShardWriter first = ShardWriter::open(folder.path(), layout);
  ShardWriter ranks[] = {ShardWriter::open(folder.path(), layout), std::move(first)};
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    ranks[i % 2].write(piece.name, piece.offset, data[piece.name].data() + piece.offset, piece.bytes);
  }
  for (ShardWriter& rank : ranks) rank.sync();
  if (const std::string index = layout.index_json(); !index.empty()) write_text(folder / "model.safetensors.index.json", index);

  EXPECT_EQ(ranks[0].bytes_written() + ranks[1].bytes_written(), layout.tensor_bytes());
  for (const ShardFile& shard : layout.shards())
    EXPECT_EQ(static_cast<int64_t>(std::filesystem::file_size(folder / shard.name)), shard.bytes);
  const auto reader = open_checkpoint(folder.path());
  EXPECT_EQ(reader->tensors().size(), data.size());
  for (const OutputTensor& tensor : mixed_tensors()) {
    const Tensor read = reader->read(tensor.name);
    EXPECT_EQ(read.shape(), tensor.shape) << tensor.name;
    EXPECT_EQ(read.dtype(), tensor.dtype) << tensor.name;
    EXPECT_EQ(reader->at(tensor.name).offset, layout.place(tensor.name).offset);
    const auto& bytes = data[tensor.name];
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), reinterpret_cast<const uint8_t*>(read.raw()))) << tensor.name;
  }
}

TEST(ShardWriter, OpensOnlyTheFilesItWritesTo) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kU8, {60}}, {"b", DType::kU8, {60}}}, 100);
  ShardWriter::create(folder.path(), layout);
  std::filesystem::remove(folder / layout.shards()[1].name);
  ShardWriter writer = ShardWriter::open(folder.path(), layout);
  const std::string bytes(60, 'x');

  writer.write("a", 0, bytes.data(), 60);
  writer.sync();

  test::expect_error(ErrorKind::kSystem, "open: No such file", [&] { writer.write("b", 0, bytes.data(), 60); });
}

TEST(ShardWriter, WritingOutsideATensorIsABug) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kU8, {60}}, {"b", DType::kU8, {60}}}, 1000);
  ShardWriter::create(folder.path(), layout);
  ShardWriter writer = ShardWriter::open(folder.path(), layout);

  for (const auto& [offset, bytes] : {std::pair<int64_t, int64_t>{0, 61}, {60, 1}, {-1, 1}, {1, INT64_MAX}, {0, -1}})
    test::expect_error(ErrorKind::kBug, "outside the tensor", [&, at = offset, count = bytes] { writer.write("a", at, nullptr, count); });
}

TEST(ShardWriter, AFolderThatIsAbsentIsASystemError) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kU8, {60}}}, 100);

  test::expect_error(ErrorKind::kSystem, "open: No such file", [&] { ShardWriter::create(folder / "absent", layout); });
}

TEST(ShardWriter, AFileThatDoesNotFitFailsOnCreation) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kU8, {4 << 20}}}, INT64_MAX);
  // A limit of this process stands in for a full disk: filling a real one would hurt whoever else uses it.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1 << 20, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);

  test::expect_error(ErrorKind::kSystem, "File too large", [&] { ShardWriter::create(folder.path(), layout); });

  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
}

TEST(ShardWriter, ProgressMayBeReadWhileAnotherThreadWrites) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kU8, {2000}}}, 10'000);
  ShardWriter::create(folder.path(), layout);
  ShardWriter writer = ShardWriter::open(folder.path(), layout);

  std::thread thread([&] {
    for (int64_t i = 0; i < 2000; ++i) writer.write("a", i, "x", 1);
  });
  int64_t seen = 0;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_GE(writer.bytes_written(), seen);
    seen = writer.bytes_written();
  }
  thread.join();

  EXPECT_EQ(writer.bytes_written(), 2000);
}

}  // namespace
}  // namespace ptq::checkpoint
