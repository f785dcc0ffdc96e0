#include "checkpoint/hf_shards.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;

void expect_index_refused(const std::string& text, const std::string& words) {
  const test::TemporaryFolder folder;
  folder.write("model.safetensors.index.json", text);
  folder.write("one.safetensors", "");

  expect_error(ErrorKind::kData, words, [&] { find_hf_shards(folder.path()); });
}

TEST(HfShards, AnIndexMayNameOnlyFilesBesideIt) {
  for (const char* file : {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\\\b", "x\\u0000"})
    expect_index_refused(std::string(R"({"weight_map":{"w":")") + file + "\"}}", "not the name of a file beside it");
}

TEST(HfShards, ADamagedIndexIsADataError) {
  expect_index_refused("", "not JSON");
  expect_index_refused("{", "not JSON");
  expect_index_refused(std::string("{}\0", 3), "NUL");
  expect_index_refused("[]", "no weight_map");
  expect_index_refused("{}", "no weight_map");
  expect_index_refused(R"({"weight_map":[]})", "no weight_map");
  expect_index_refused(R"({"weight_map":{}})", "no weight_map");
  expect_index_refused(R"({"weight_map":{"w":1}})", "no file name for tensor 'w'");
  expect_index_refused(R"({"weight_map":{"w":"one.safetensors","w":"one.safetensors"}})", "'w' twice");
  expect_index_refused(std::string(100'000, '['), "nested too deep");
}

TEST(HfShards, AMissingShardIsNamedWithTheTensorsItHolds) {
  const test::TemporaryFolder folder;
  folder.write("model.safetensors.index.json", R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})");
  folder.write("one.safetensors", "");

  expect_error(ErrorKind::kData, "shard 'two.safetensors' is missing: it holds 2 of the checkpoint's 3 tensors",
               [&] { find_hf_shards(folder.path()); });
}

TEST(HfShards, TheIndexSaysWhichFileHoldsWhat) {
  const test::TemporaryFolder folder;
  folder.write("model.safetensors.index.json",
               R"({"metadata":{"total_size":3,"w":1},"weight_map":{"w":"one.safetensors","a":"two.safetensors","b":"two.safetensors"}})");
  folder.write("one.safetensors", "");
  folder.write("two.safetensors", "");
  folder.write("model.safetensors", "");

  const HfShards shards = find_hf_shards(folder.path());

  ASSERT_EQ(shards.size(), 2u);
  EXPECT_EQ(shards.at("one.safetensors"), (std::vector<std::string>{"w"}));
  EXPECT_EQ(shards.at("two.safetensors"), (std::vector<std::string>{"a", "b"}));
}

TEST(HfShards, ShardsWithoutAnIndexMustBeAllThere) {
  const test::TemporaryFolder folder;
  folder.write("model-00001-of-00003.safetensors", "");
  folder.write("model-00003-of-00003.safetensors", "");
  EXPECT_TRUE(has_hf_shards(folder.path()));
  expect_error(ErrorKind::kData, "shard 2 of 3 is missing", [&] { find_hf_shards(folder.path()); });

  folder.write("model-00002-of-00003.safetensors", "");
  EXPECT_EQ(find_hf_shards(folder.path()).size(), 3u);

  folder.write("model-00004-of-00003.safetensors", "");
  expect_error(ErrorKind::kData, "more shards than", [&] { find_hf_shards(folder.path()); });

  folder.write("model-00001-of-00002.safetensors", "");
  expect_error(ErrorKind::kData, "different checkpoints", [&] { find_hf_shards(folder.path()); });
}

TEST(HfShards, AHugeShardCountIsNotCountedOut) {
  const test::TemporaryFolder folder;
  folder.write("model-00001-of-2147483647.safetensors", "");

  expect_error(ErrorKind::kData, "shard 2 of 2147483647 is missing", [&] { find_hf_shards(folder.path()); });
}

TEST(HfShards, OnlyTheModelsOwnNamesCountAsShards) {
  const test::TemporaryFolder folder;
  for (const char* name :
       {"reference.safetensors", "gradients.safetensors", "model-1.safetensors", "model-of-2.safetensors", "model-00001-of-00002.bin",
        "model-00001-of-00002x.safetensors", "model-.safetensors", "xmodel-1-of-1.safetensors"})
    folder.write(name, "");

  EXPECT_FALSE(has_hf_shards(folder.path()));
}

TEST(HfShards, CompanionsAreWhatIsNeitherWeightsNorHidden) {
  const test::TemporaryFolder folder;
  for (const char* name : {"config.json",
                           "tokenizer.json",
                           "tokenizer.model",
                           "LICENSE",
                           "modeling_x.py",
                           "additional_chat_templates/tool.jinja",
                           "model.safetensors",
                           "model.safetensors.index.json",
                           "pytorch_model.bin",
                           "pytorch_model.bin.index.json",
                           "a.pt",
                           "b.pth",
                           "c.gguf",
                           "d.h5",
                           "e.onnx",
                           "consolidated.00.safetensors",
                           "consolidated.json",
                           "original/params.json",
                           ".gitattributes",
                           ".git/config",
                           ".cache/x",
                           "hf_quant_config.json",
                           "sub/adapter.bin",
                           "sub/.hidden",
                           "sub/deeper/file.json"})
    folder.write(name, "");
  std::filesystem::create_symlink("config.json", folder / "linked.json");
  std::filesystem::create_symlink("absent", folder / "dangling.json");
  std::filesystem::create_directory_symlink("..", folder / "up");

  const std::vector<std::string> expected = {
      "LICENSE",        "additional_chat_templates/tool.jinja", "config.json", "linked.json", "modeling_x.py", "tokenizer.json",
      "tokenizer.model"};
  EXPECT_EQ(hf_companion_files(folder.path()), expected);
}

}  // namespace
}  // namespace ptq::checkpoint
