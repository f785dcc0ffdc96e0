#include "checkpoint/torch_dist_store.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <filesystem>
#include <functional>
#include <random>
#include <thread>

#include "checkpoint/reader.h"
#include "checkpoint/tar_index.h"
#include "tests/support/expect_error.h"
#include "tests/support/make_dist_checkpoint.h"
#include "tests/support/make_tar.h"
#include "tests/support/model_files.h"
#include "tests/support/shared_folder.h"

namespace ptq::checkpoint {
namespace {

using test::byte_chunk;
using test::DistArray;
using test::DistChunk;
using test::expect_error;

std::unique_ptr<TorchDistStore> open(const std::string& folder) { return TorchDistStore::open(folder_files(folder), folder); }

std::string read(const TorchDistStore& store, const ArrayEntry& array, const Shape& begin, const Shape& sizes) {
  std::string bytes(static_cast<size_t>(element_count(sizes) * dtype_bytes(array.dtype)), '?');
  store.read_box(array, begin, sizes, reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}
std::string read_whole(const TorchDistStore& store, const std::string& name) {
  const ArrayEntry& array = store.arrays().at(name);
  return read(store, array, Shape(array.shape.size(), 0), array.shape);
}

/// The box cut out of the whole array's bytes, element by element.
std::string cut(const std::string& whole, const ArrayEntry& array, const Shape& begin, const Shape& sizes) {
  const auto item = static_cast<size_t>(dtype_bytes(array.dtype));
  std::string bytes;
  for (int64_t i = 0; i < element_count(sizes); ++i) {
    int64_t rest = i, at = 0, stride = 1;
    for (size_t d = sizes.size(); d-- > 0;) {
      at += (begin[d] + rest % sizes[d]) * stride;
      rest /= sizes[d];
      stride *= array.shape[d];
    }
    bytes.append(whole, static_cast<size_t>(at) * item, item);
  }
  return bytes;
}

void expect_boxes_are_cuts(const TorchDistStore& store, int boxes) {
  std::mt19937 random(7);
  for (const auto& [name, array] : store.arrays()) {
    const std::string whole = read_whole(store, name);
    for (int i = 0; i < boxes; ++i) {
      Shape begin, sizes;
      for (const int64_t length : array.shape) {
        begin.push_back(std::uniform_int_distribution<int64_t>(0, length)(random));
        sizes.push_back(std::uniform_int_distribution<int64_t>(0, length - begin.back())(random));
      }
      ASSERT_EQ(read(store, array, begin, sizes), cut(whole, array, begin, sizes)) << name << to_string(begin) << to_string(sizes);
    }
  }
}

TEST(TorchDistStore, PlainCheckpointsHoldTheExpectedTensors) {
  PTQ_NEEDS_SHARED(shared);
  const std::string inputs = shared + "/fixtures/input_formats/";
  const test::StoredTensors expected = test::read_tensors(inputs + "hf/llama");
  const auto store = open(inputs + "dcp_llama_w2");

  ASSERT_EQ(store->arrays().size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    const ArrayEntry& array = store->arrays().at("model." + name);
    EXPECT_EQ(dtype_name(array.dtype), tensor.dtype);
    EXPECT_EQ(array.shape, tensor.shape);
    EXPECT_EQ(read_whole(*store, array.name), tensor.bytes) << name;
  }
  EXPECT_EQ(store->bytes_read(), test::tensor_bytes(expected));
  EXPECT_EQ(store->files(), (std::vector<std::string>{".metadata", "__0_0.distcp", "__1_0.distcp"}));
}

TEST(TorchDistStore, BoxesAcrossChunkBordersAreCutsOfTheWhole) {
  PTQ_NEEDS_SHARED(shared);
  const std::string inputs = shared + "/fixtures/input_formats/";
  for (const char* folder :
       {"mcore_llama_tp2/iter_0000005", "mcore_qwen3moe_ep2/iter_0000005", "mcore_dsv3_ep2/iter_0000005", "dcp_llama_w2"}) {
    SCOPED_TRACE(folder);
    expect_boxes_are_cuts(*open(inputs + folder), 8);
  }
}

TEST(TorchDistStore, StackedLayersHoldTheExpectedTensors) {
  PTQ_NEEDS_SHARED(shared);
  const std::string inputs = shared + "/fixtures/input_formats/";
  const test::StoredTensors expected = test::read_tensors(inputs + "hf/llama");
  const auto store = open(inputs + "mcore_llama_tp2/iter_0000005");

  const ArrayEntry& down = store->arrays().at("decoder.layers.mlp.linear_fc2.weight");
  const ArrayEntry& gate_up = store->arrays().at("decoder.layers.mlp.linear_fc1.weight");
  for (int64_t layer = 0; layer < down.shape[0]; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.";
    const int64_t half = gate_up.shape[1] / 2, hidden = gate_up.shape[2];
    EXPECT_EQ(read(*store, down, {layer, 0, 0}, {1, down.shape[1], down.shape[2]}), expected.at(prefix + "down_proj.weight").bytes);
    EXPECT_EQ(read(*store, gate_up, {layer, 0, 0}, {1, half, hidden}), expected.at(prefix + "gate_proj.weight").bytes);
    EXPECT_EQ(read(*store, gate_up, {layer, half, 0}, {1, half, hidden}), expected.at(prefix + "up_proj.weight").bytes);
  }
}

/// [4, 6] bytes in four chunks of two files.
DistArray sound_array() {
  return {"w",
          "uint8",
          {4, 6},
          {byte_chunk({0, 0}, {3, 2}, "__0_0.distcp", 'a'), byte_chunk({0, 2}, {3, 4}, "__0_0.distcp", 'b'),
           byte_chunk({3, 0}, {1, 2}, "__1_0.distcp", 'c'), byte_chunk({3, 2}, {1, 4}, "__1_0.distcp", 'd')}};
}

TEST(TorchDistStore, ChunksArePutWhereTheyBelong) {
  const test::TemporaryFolder folder;
  DistArray scalar{"scalar", "uint8", {}, {byte_chunk({}, {}, "__1_0.distcp", 's')}};
  DistArray ragged{"ragged",
                   "uint8",
                   {3, 2},
                   {byte_chunk({0, 0}, {2, 2}, "__0_0.distcp", 'x'),
                    byte_chunk({2, 0}, {1, 2}, "__1_0.distcp", 'y'),
                    {{3, 0}, {0, 2}, "__1_0.distcp", "", {}, false}}};
  DistArray optimizer = sound_array();
  optimizer.name = "optimizer.state.exp_avg.w";
  optimizer.chunks[0].file = "__0_9.distcp";
  write_dist_checkpoint(folder, {sound_array(), scalar, ragged, optimizer, {"none", "float32", {0, 5}, {}}},
                        {test::pickled("all_local_plans"), test::pickled_list({test::pickled_call("m f", {})})});
  std::filesystem::remove(folder / "__0_9.distcp");
  const auto store = open(folder.path());

  EXPECT_EQ(store->arrays().size(), 4u);
  EXPECT_EQ(read_whole(*store, "w"), "aabbbbaabbbbaabbbbccdddd");
  EXPECT_EQ(read_whole(*store, "scalar"), "s");
  EXPECT_EQ(read_whole(*store, "ragged"), "xxxxyy");
  EXPECT_EQ(read_whole(*store, "none"), "");
  EXPECT_EQ(store->place(store->arrays().at("w")).first, "__0_0.distcp");
  EXPECT_EQ(store->place(store->arrays().at("none")).first, ".metadata");
  expect_boxes_are_cuts(*store, 200);
}

TEST(TorchDistStore, CompressedAndTransposedChunksAreDecoded) {
  const test::TemporaryFolder folder;
  DistArray array{"w", "uint8", {4, 3}, {byte_chunk({0, 0}, {2, 3}, "a.distcp", 'a'), {{2, 0}, {2, 3}, "a.distcp", ""}}};
  std::string packed(ZSTD_compressBound(array.chunks[0].slice.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), array.chunks[0].slice.data(), array.chunks[0].slice.size(), 3));
  array.chunks[0].slice = packed;
  array.chunks[0].transforms = {"stream.zstd/1"};
  array.chunks[1].slice =
      test::torch_file(test::pickled_tensor(test::pickled_storage("torch ByteStorage", "0", 6), 0, {2, 3}, {1, 2}), {"adbecf"});
  write_dist_checkpoint(folder, {array});
  const auto store = open(folder.path());

  EXPECT_EQ(read_whole(*store, "w"), "aaaaaaabcdef");
  expect_boxes_are_cuts(*store, 100);

  array.chunks[0].slice = packed.substr(0, packed.size() - 3);
  write_dist_checkpoint(folder, {array});
  expect_error(ErrorKind::kData, "ends early", [&] { read_whole(*open(folder.path()), "w"); });
  std::string bomb(ZSTD_compressBound(64 << 20), '\0');
  bomb.resize(ZSTD_compress(bomb.data(), bomb.size(), std::string(64 << 20, 'x').data(), 64 << 20, 3));
  array.chunks[0].slice = bomb;
  write_dist_checkpoint(folder, {array});
  expect_error(ErrorKind::kData, "larger than it should be", [&] { read_whole(*open(folder.path()), "w"); });
}

/// The files of a folder as members of an archive below model_weights/.
std::string archived(const test::TemporaryFolder& folder, const std::vector<std::string>& names) {
  std::string archive = test::tar_member("./model_config.yaml", "precision: bf16");
  for (const std::string& name : names) archive += test::tar_member("./model_weights/" + name, test::read_file(folder / name));
  return folder.write("a.nemo", archive + test::tar_end());
}
std::unique_ptr<TorchDistStore> open_archive(const std::string& path) {
  return TorchDistStore::open(files_below(index_tar(path), "model_weights"), path);
}

TEST(TorchDistStore, MayLieInAnArchive) {
  const test::TemporaryFolder folder;
  write_dist_checkpoint(folder, {sound_array(), {"none", "float32", {0, 5}, {}}});
  const std::string path = archived(folder, {"__1_0.distcp", ".metadata", "__0_0.distcp"});
  const FileSet members = files_below(index_tar(path), "model_weights");
  const auto store = TorchDistStore::open(members, path);

  EXPECT_EQ(read_whole(*store, "w"), "aabbbbaabbbbaabbbbccdddd");
  expect_boxes_are_cuts(*store, 100);
  EXPECT_EQ(store->files(), (std::vector<std::string>{""}));
  EXPECT_EQ(store->place(store->arrays().at("w")), std::pair(std::string(), members.at("__0_0.distcp").offset));
  EXPECT_EQ(store->place(store->arrays().at("none")), std::pair(std::string(), members.at(".metadata").offset));

  // Of the member alone: that other bytes follow it in the archive does not make it longer.
  folder.write("__1_0.distcp", test::read_file(folder / "__1_0.distcp").substr(0, 1000));
  expect_error(ErrorKind::kData, "a.nemo: __1_0.distcp", [&] {
    open_archive(archived(folder, {"__1_0.distcp", ".metadata", "__0_0.distcp"}));
  });
  expect_error(ErrorKind::kData, "'__1_0.distcp' of the checkpoint is missing: it holds parts of 1 arrays: 'w'", [&] {
    open_archive(archived(folder, {".metadata", "__0_0.distcp"}));
  });
}

TEST(TorchDistStore, FilesInAFolderBelowAreCalledByTheirWholeNames) {
  const test::TemporaryFolder folder;
  write_dist_checkpoint(folder, {sound_array()});
  const auto files = folder_files(folder.path());
  const std::string root = std::filesystem::path(folder.path()).parent_path().string(), below = folder.path().substr(root.size() + 1);
  const auto store = TorchDistStore::open(files, root);

  EXPECT_EQ(store->files(), (std::vector<std::string>{below + "/.metadata", below + "/__0_0.distcp", below + "/__1_0.distcp"}));
  EXPECT_EQ(read_whole(*store, "w"), "aabbbbaabbbbaabbbbccdddd");
}

TEST(TorchDistStore, ThreadsReadTogether) {
  const test::TemporaryFolder folder;
  write_dist_checkpoint(folder, {sound_array()});
  const auto store = open(folder.path());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) EXPECT_EQ(read_whole(*store, "w"), "aabbbbaabbbbaabbbbccdddd");
    });
  for (std::thread& thread : threads) thread.join();
}

void expect_refused(const std::string& words, const std::function<void(DistArray&)>& change) {
  const test::TemporaryFolder folder;
  DistArray array = sound_array();
  change(array);
  write_dist_checkpoint(folder, {array});
  expect_error(ErrorKind::kData, words, [&] { read_whole(*open(folder.path()), array.name); });
}

TEST(TorchDistStore, ChunksThatDoNotTileTheirArrayAreRefused) {
  expect_refused("overlap", [](DistArray& array) { array.chunks[0] = byte_chunk({0, 0}, {3, 3}, "f", 'a'); });
  expect_refused("leave a hole", [](DistArray& array) { array.chunks.pop_back(); });
  expect_refused("leave a hole", [](DistArray& array) { array.chunks.clear(); });
  expect_refused("reaches outside", [](DistArray& array) { array.chunks[3] = byte_chunk({3, 2}, {1, 5}, "f", 'a'); });
  expect_refused("begin at the same place", [](DistArray& array) { array.chunks[3] = byte_chunk({3, 0}, {1, 4}, "f", 'a'); });
  expect_refused("where a chunk of 'w' lies", [](DistArray& array) { array.chunks[1].is_placed = false; });
}

TEST(TorchDistStore, DamagedShardsAreNamed) {
  expect_refused("truncated", [](DistArray& array) { array.chunks[3].shift = 1; });
  expect_refused("not a file of torch.save", [](DistArray& array) { array.chunks[0].shift = 1; });
  expect_refused("outside of any file", [](DistArray& array) { array.chunks[0].shift = -1; });
  expect_refused("zip", [](DistArray& array) { array.chunks[3].slice.resize(array.chunks[3].slice.size() - 1); });
  expect_refused("the metadata says", [](DistArray& array) { array.chunks[0].slice = test::torch_file_of_bytes({5}, "abcde"); });
  expect_refused("the metadata says", [](DistArray& array) { array.chunks[0].slice = test::torch_file_of_bytes({2, 3}, "abcdef"); });
  expect_refused("the metadata says", [](DistArray& array) { array.dtype = "int8"; });
  expect_refused("no tensor", [](DistArray& array) { array.chunks[0].slice = test::torch_file("N", {}); });
}

TEST(TorchDistStore, WhatCannotBeReadIsNamed) {
  expect_refused("stored through 'stream.lz4/1'", [](DistArray& array) { array.chunks[0].transforms = {"stream.lz4/1"}; });
  expect_refused("complex64", [](DistArray& array) { array.dtype = "complex64"; });
  expect_refused("not the name of a file beside it", [](DistArray& array) { array.chunks[0].file = "../a.distcp"; });
  expect_refused("cannot be a name", [](DistArray& array) { array.name = "\xff"; });
  expect_refused("impossible shape", [](DistArray& array) { array.shape = {-1}; });
}

TEST(TorchDistStore, AMissingFileIsReportedWithTheArraysItHolds) {
  const test::TemporaryFolder folder;
  std::vector<DistArray> arrays;
  for (int i = 0; i < 5; ++i)
    arrays.push_back({"layer." + std::to_string(i), "uint8", {2}, {byte_chunk({0}, {2}, i == 4 ? "b.distcp" : "a.distcp", 'a')}});
  write_dist_checkpoint(folder, arrays);
  std::filesystem::remove(folder / "a.distcp");

  expect_error(ErrorKind::kData,
               "'a.distcp' of the checkpoint is missing: it holds parts of 4 arrays: 'layer.0', 'layer.1', 'layer.2' and 1 more",
               [&] { open(folder.path()); });
  folder.write("a.distcp", "short");
  expect_error(ErrorKind::kData, "truncated", [&] { open(folder.path()); });
}

TEST(TorchDistStore, MetadataThatIsNoneOrNamesAnArrayTwiceIsRefused) {
  const test::TemporaryFolder folder;
  folder.write(".metadata", "N.");
  expect_error(ErrorKind::kData, "does not describe", [&] { open(folder.path()); });
  folder.write(".metadata", "not a pickle");
  expect_error(ErrorKind::kData, "pickle", [&] { open(folder.path()); });
  write_dist_checkpoint(folder, {sound_array(), sound_array()});
  expect_error(ErrorKind::kData, "names 'w' twice", [&] { open(folder.path()); });
}

TEST(ChunkGrid, ManyChunksAreCheckedQuicklyAndIrregularOnesRefused) {
  std::vector<Box> grid, diagonal;
  for (int64_t i = 0; i < 400; ++i) {
    for (int64_t j = 0; j < 250; ++j) grid.push_back({{i * 2, j * 3}, {2, 3}});
    diagonal.push_back({{i, i}, {1, 1}});
  }
  const ChunkGrid tiled({800, 750}, grid, "w", "f");

  EXPECT_EQ(tiled.touched({{1, 2}, {2, 2}}), (std::vector<uint32_t>{0, 1, 250, 251}));
  EXPECT_EQ(tiled.touched({{799, 749}, {1, 1}}), (std::vector<uint32_t>{99'999}));
  EXPECT_TRUE(tiled.touched({{5, 5}, {0, 3}}).empty());
  expect_error(ErrorKind::kData, "not cut along a grid", [&] { ChunkGrid({400, 400}, diagonal, "w", "f"); });
  const std::vector<Box> pinwheel{{{0, 0}, {1, 2}}, {{0, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{1, 0}, {2, 1}}, {{1, 1}, {1, 1}}};
  EXPECT_EQ(ChunkGrid({3, 3}, pinwheel, "w", "f").touched({{0, 1}, {2, 2}}), (std::vector<uint32_t>{0, 1, 4}));
}

}  // namespace
}  // namespace ptq::checkpoint
