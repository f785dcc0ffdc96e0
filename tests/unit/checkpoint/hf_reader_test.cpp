#include "checkpoint/hf_reader.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "checkpoint/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/make_safetensors.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::byte_tensors;
using test::expect_error;

TEST(HfReader, APathThatIsNoCheckpointIsAUserErrorSayingWhatWasLookedFor) {
  const test::TemporaryFolder folder;
  folder.write("reference.safetensors", byte_tensors({"a"}, 2));
  folder.write("file", "x");

  expect_error(ErrorKind::kUser, "does not exist", [&] { open_checkpoint(folder / "absent"); });
  expect_error(ErrorKind::kUser, "model.safetensors.index.json", [&] { open_checkpoint(folder.path()); });
  expect_error(ErrorKind::kUser, "no checkpoint here", [&] { open_checkpoint(folder / "file"); });
}

TEST(HfReader, ASingleFileIsReadWithoutTheOthersBesideIt) {
  const test::TemporaryFolder folder;
  folder.write("model.safetensors", byte_tensors({"a", "b"}, 3));
  folder.write("reference.safetensors", byte_tensors({"c"}, 2));
  folder.write("gradients.safetensors", "not a safetensors file");

  const auto reader = open_checkpoint(folder.path());

  EXPECT_EQ(reader->format(), "safetensors");
  EXPECT_EQ(reader->folder(), folder.path());
  EXPECT_EQ(reader->tensors().size(), 2u);
  EXPECT_EQ(reader->find("c"), nullptr);
  EXPECT_EQ(reader->at("b").file, "model.safetensors");
  expect_error(ErrorKind::kData, "no tensor 'c'", [&] { reader->at("c"); });
}

TEST(HfReader, RowsAreTheSlicesOfTheWhole) {
  const test::TemporaryFolder folder;
  std::vector<int32_t> values(7 * 5);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i);
  const float scalar = 2.5f;
  write_safetensors(folder / "model.safetensors", {{"w", DType::kI32, {7, 5}}, {"s", DType::kF32, {}}, {"none", DType::kF32, {0, 5}}},
                    {values.data(), &scalar, nullptr});

  const auto reader = open_checkpoint(folder.path());

  const Tensor whole = reader->read("w");
  EXPECT_EQ(whole.shape(), (Shape{7, 5}));
  EXPECT_TRUE(std::equal(values.begin(), values.end(), whole.data<int32_t>()));
  for (int64_t begin = 0; begin <= 7; ++begin) {
    for (int64_t end = begin; end <= 7; ++end) {
      std::vector<int32_t> rows(static_cast<size_t>((end - begin) * 5), -1);
      reader->read_rows(reader->at("w"), begin, end, reinterpret_cast<std::byte*>(rows.data()));
      EXPECT_TRUE(std::equal(rows.begin(), rows.end(), values.begin() + begin * 5));
    }
  }
  EXPECT_EQ(*reader->read("s").data<float>(), scalar);
  EXPECT_EQ(reader->read("none").shape(), (Shape{0, 5}));
  EXPECT_THROW(reader->read_rows(reader->at("w"), 6, 8, nullptr), Error);
  EXPECT_THROW(reader->read_rows(reader->at("w"), -1, 1, nullptr), Error);
}

TEST(HfReader, CountsTheWeightBytesItRead) {
  const test::TemporaryFolder folder;
  folder.write("model.safetensors", byte_tensors({"a", "b"}, 100));
  const auto reader = open_checkpoint(folder.path());
  std::byte row{};

  EXPECT_EQ(reader->bytes_read(), 0);
  reader->read("a");
  reader->read_rows(reader->at("b"), 50, 51, &row);

  EXPECT_EQ(reader->bytes_read(), 101);
  EXPECT_EQ(static_cast<char>(row), 'b');
}

TEST(HfReader, ATensorLargerThanOneReadComesWhole) {
  const test::TemporaryFolder folder;
  std::vector<uint8_t> values((20u << 20) + 13);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  write_safetensors(folder / "model.safetensors", {{"w", DType::kU8, {static_cast<int64_t>(values.size())}}}, {values.data()});

  const Tensor whole = open_checkpoint(folder.path())->read("w");

  EXPECT_TRUE(std::equal(values.begin(), values.end(), whole.data<uint8_t>()));
}

TEST(HfReader, AFileThatShrinksAfterOpeningIsADataError) {
  const test::TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", byte_tensors({"a", "b"}, 100));
  const auto before_first_read = open_checkpoint(folder.path());
  const auto after_first_read = open_checkpoint(folder.path());
  after_first_read->read("b");

  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 50);

  expect_error(ErrorKind::kData, "truncated", [&] { before_first_read->read("b"); });
  expect_error(ErrorKind::kData, "ends inside tensor 'b'", [&] { after_first_read->read("b"); });
}

TEST(HfReader, ATensorInTwoShardsIsADataError) {
  const test::TemporaryFolder folder;
  folder.write("model-00001-of-00002.safetensors", byte_tensors({"a", "b"}, 3));
  folder.write("model-00002-of-00002.safetensors", byte_tensors({"b"}, 3));

  expect_error(ErrorKind::kData, "'b' is in two files", [&] { open_checkpoint(folder.path()); });
}

TEST(HfReader, WithoutAnIndexAllShardsAreJoined) {
  const test::TemporaryFolder folder;
  folder.write("model-00001-of-00002.safetensors", byte_tensors({"a"}, 3));
  folder.write("model-00002-of-00002.safetensors", byte_tensors({"b"}, 3));

  const auto reader = open_checkpoint(folder.path());

  EXPECT_EQ(reader->tensors().size(), 2u);
  EXPECT_EQ(reader->at("b").file, "model-00002-of-00002.safetensors");
}

TEST(HfReader, TensorsTheIndexDoesNotNameAreLeftOut) {
  const test::TemporaryFolder folder;
  folder.write("model.safetensors.index.json", R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})");
  folder.write("one.safetensors", byte_tensors({"a", "c"}, 3));
  folder.write("two.safetensors", byte_tensors({"b", "c"}, 3));

  const auto reader = open_checkpoint(folder.path());

  EXPECT_EQ(reader->tensors().size(), 2u);
  EXPECT_EQ(reader->at("c").file, "two.safetensors");
  EXPECT_EQ(static_cast<char>(*reader->read("c").raw()), 'b');
}

TEST(HfReader, AnIndexNamingATensorItsFileLacksIsADataError) {
  const test::TemporaryFolder folder;
  folder.write("model.safetensors.index.json", R"({"weight_map":{"a":"one.safetensors","z":"one.safetensors"}})");
  folder.write("one.safetensors", byte_tensors({"a"}, 3));

  expect_error(ErrorKind::kData, "'z' is in this file, but it is not", [&] { open_checkpoint(folder.path()); });
}

TEST(HfReader, LinkedFilesAreReadLikeOthers) {
  const test::TemporaryFolder folder;
  folder.write("blobs/0123", byte_tensors({"a"}, 3));
  std::filesystem::create_directory(folder / "snapshot");
  std::filesystem::create_symlink("../blobs/0123", folder / "snapshot/model.safetensors");

  EXPECT_EQ(open_checkpoint(folder / "snapshot")->read("a").numel(), 3);
}

TEST(HfReader, ThreadsMayReadAndAskAtOnce) {
  const test::TemporaryFolder folder;
  folder.write("model-00001-of-00002.safetensors", byte_tensors({"a", "b"}, 5000));
  folder.write("model-00002-of-00002.safetensors", byte_tensors({"c", "d"}, 5000));
  const auto reader = open_checkpoint(folder.path());

  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i)
        for (const auto& [name, tensor] : reader->tensors()) EXPECT_EQ(reader->read(name).numel(), reader->at(name).shape[0]);
    });
  for (std::thread& thread : threads) thread.join();

  EXPECT_EQ(reader->bytes_read(), 4 * 50 * 4 * 5000);
}

}  // namespace
}  // namespace ptq::checkpoint
