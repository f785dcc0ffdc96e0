#include "checkpoint/hf_torch_reader.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/support/expect_error.h"
#include "tests/support/make_safetensors.h"
#include "tests/support/make_torch_file.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;
using test::pickled;
using test::pickled_dict;
using test::pickled_storage;
using test::pickled_tensor;
using test::torch_file;

/// A state dict of byte tensors [2, bytes / 2] of these names and contents, with an entry that is no tensor.
std::string state_dict(const std::vector<std::pair<std::string, std::string>>& tensors) {
  std::vector<std::string> entries{pickled("epoch"), "K\x07"}, storages;
  for (const auto& [name, bytes] : tensors) {
    const auto count = static_cast<int64_t>(bytes.size());
    entries.push_back(pickled(name));
    entries.push_back(
        pickled_tensor(pickled_storage("torch ByteStorage", std::to_string(storages.size()), count), 0, {2, count / 2}, {count / 2, 1}));
    storages.push_back(bytes);
  }
  return torch_file(pickled_dict(entries), storages);
}

std::string rows(const Reader& reader, const std::string& name, int64_t begin, int64_t end) {
  const TensorEntry& entry = reader.at(name);
  std::string bytes(static_cast<size_t>((end - begin) * entry.row_bytes()), '?');
  reader.read_rows(entry, begin, end, reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

TEST(HfTorchReader, TensorsOfAStateDictAreReadByRows) {
  const test::TemporaryFolder folder;
  folder.write("pytorch_model.bin", state_dict({{"a", "abcdef"}, {"b", "uvwxyz"}}));
  folder.write("config.json", "{}");
  folder.write("training_args.bin", "x");

  const auto reader = open_checkpoint(folder.path());

  EXPECT_EQ(reader->format(), "torch pickle");
  EXPECT_EQ(reader->tensors().size(), 2u);
  EXPECT_EQ(rows(*reader, "a", 0, 2), "abcdef");
  EXPECT_EQ(rows(*reader, "b", 1, 2), "xyz");
  EXPECT_EQ(rows(*reader, "b", 1, 1), "");
  EXPECT_EQ(reader->bytes_read(), 9);
  EXPECT_EQ(reader->companion_files(), (std::vector<std::string>{"config.json"}));
}

TEST(HfTorchReader, SafetensorsBesideItComeFirst) {
  const test::TemporaryFolder folder;
  folder.write("pytorch_model.bin", "not looked at");
  folder.write("model.safetensors", test::byte_tensors({"a"}, 1));

  EXPECT_EQ(open_checkpoint(folder.path())->format(), "safetensors");
}

TEST(HfTorchReader, TiedAndTransposedTensorsShareAStorage) {
  const test::TemporaryFolder folder;
  const std::string storage = pickled_storage("torch ByteStorage", "0", 6);
  folder.write("pytorch_model.bin", torch_file(pickled_dict({pickled("embed"), pickled_tensor(storage, 0, {2, 3}, {3, 1}), pickled("head"),
                                                             pickled_tensor(storage, 0, {2, 3}, {3, 1}), pickled("turned"),
                                                             pickled_tensor(storage, 0, {3, 2}, {1, 3})}),
                                               {"abcdef"}));

  const auto reader = open_checkpoint(folder.path());

  EXPECT_EQ(rows(*reader, "embed", 0, 2), "abcdef");
  EXPECT_EQ(rows(*reader, "head", 1, 2), "def");
  EXPECT_EQ(rows(*reader, "turned", 0, 3), "adbecf");
  EXPECT_EQ(rows(*reader, "turned", 1, 3), "becf");
}

TEST(HfTorchReader, ShardsAreJoinedByIndexOrByNumber) {
  const test::TemporaryFolder folder;
  folder.write("pytorch_model-00001-of-00002.bin", state_dict({{"a", "abcd"}}));
  folder.write("pytorch_model-00002-of-00002.bin", state_dict({{"b", "efgh"}, {"left over", "xx"}}));
  EXPECT_EQ(open_checkpoint(folder.path())->tensors().size(), 3u);

  folder.write("pytorch_model.bin.index.json",
               R"({"weight_map":{"a":"pytorch_model-00001-of-00002.bin","b":"pytorch_model-00002-of-00002.bin"}})");
  const auto reader = open_checkpoint(folder.path());
  EXPECT_EQ(reader->tensors().size(), 2u);
  EXPECT_EQ(rows(*reader, "b", 0, 2), "efgh");

  folder.write("pytorch_model.bin.index.json", R"({"weight_map":{"c":"pytorch_model-00002-of-00002.bin"}})");
  expect_error(ErrorKind::kData, "'c' is in this file", [&] { open_checkpoint(folder.path()); });
  folder.write("pytorch_model.bin.index.json", R"({"weight_map":{"c":"absent.bin"}})");
  expect_error(ErrorKind::kData, "'absent.bin' is missing", [&] { open_checkpoint(folder.path()); });
}

TEST(HfTorchReader, DamagedFilesAreDataErrors) {
  const test::TemporaryFolder folder;
  const auto expect_refused = [&](const std::string& bytes, const std::string& words) {
    folder.write("pytorch_model.bin", bytes);
    expect_error(ErrorKind::kData, words, [&] { open_checkpoint(folder.path()); });
  };
  expect_refused("version https://git-lfs.github.com/spec/v1", "not a file of torch.save");
  expect_refused("", "not a file of torch.save");
  expect_refused(state_dict({}), "holds no tensors");
  expect_refused(state_dict({{"a", "ab"}, {"a", "cd"}}), "there twice");
  expect_refused(state_dict({{"\xff", "ab"}}), "cannot be a name");
  const std::string sound = state_dict({{"a", "abcdef"}});
  expect_refused(sound.substr(0, sound.size() - 1), "truncated");

  folder.write("pytorch_model.bin", sound);
  const auto reader = open_checkpoint(folder.path());
  folder.write("pytorch_model.bin", sound.substr(0, 100));
  expect_error(ErrorKind::kData, "shorter", [&] { rows(*reader, "a", 0, 2); });
}

TEST(HfTorchReader, ANamedPipeIsRefusedInsteadOfWaitedFor) {
  const test::TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pytorch_model.bin").c_str(), 0600), 0);

  expect_error(ErrorKind::kData, "not a regular file", [&] { open_checkpoint(folder.path()); });
}

TEST(HfTorchReader, ATensorInTwoFilesIsADataError) {
  const test::TemporaryFolder folder;
  for (const char* file : {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"})
    folder.write(file, state_dict({{"a", "abcd"}}));

  expect_error(ErrorKind::kData, "'a' is in two files", [&] { open_checkpoint(folder.path()); });
}

}  // namespace
}  // namespace ptq::checkpoint
