// Arrays of zarr chunks in a folder and in an archive, and everything that can be wrong with them.

#include "checkpoint/zarr_store.h"

#include <gtest/gtest.h>

#include <numeric>

#include "checkpoint/tar_index.h"
#include "tests/support/expect_error.h"
#include "tests/support/make_tar.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;

constexpr const char* kDescription =
    R"({"zarr_format": 2, "shape": [3, 4], "chunks": [2, 3], "dtype": "<f4", "order": "C", "compressor": null, "filters": null, "fill_value": null})";

/// Chunk (i, j) of the array of 0, 1, 2, ... in row-major order, full even at the edges.
std::string chunk(int64_t i, int64_t j) {
  std::string bytes;
  for (int64_t r = 2 * i; r < 2 * i + 2; ++r)
    for (int64_t c = 3 * j; c < 3 * j + 3; ++c) {
      const float value = r < 3 && c < 4 ? static_cast<float>(4 * r + c) : -1.0f;
      bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  return bytes;
}

class Zarr : public ::testing::Test {
 protected:
  Zarr() {
    folder_.write("weights/a.weight/.zarray", kDescription);
    for (const int i : {0, 1})
      for (const int j : {0, 1}) folder_.write("weights/a.weight/" + std::to_string(i) + "." + std::to_string(j), chunk(i, j));
    folder_.write("weights/optimizer.state.a/.zarray", "not looked at");
    folder_.write("weights/a._extra_state/shard_0_1.pt", "an object");
  }
  std::unique_ptr<ArrayStore> open() const { return ZarrStore::open(folder_files(folder_ / "weights"), folder_ / "weights"); }
  static std::vector<float> box(const ArrayStore& store, const Shape& begin, const Shape& sizes) {
    std::vector<float> values(static_cast<size_t>(element_count(sizes)));
    store.read_box(store.arrays().at("a.weight"), begin, sizes, reinterpret_cast<std::byte*>(values.data()));
    return values;
  }
  /// With `from` replaced in the description, opening says `words`.
  void refused(const std::string& from, const std::string& to, const std::string& words) const {
    std::string text = kDescription;
    text.replace(text.find(from), from.size(), to);
    folder_.write("weights/a.weight/.zarray", text);
    expect_error(ErrorKind::kData, words, [&] { open(); });
    folder_.write("weights/a.weight/.zarray", kDescription);
  }
  test::TemporaryFolder folder_;
};

TEST_F(Zarr, BoxesAreReadFromTheChunksThatHoldThem) {
  const auto store = open();
  ASSERT_EQ(store->arrays().size(), 1u);
  EXPECT_EQ(store->arrays().at("a.weight").shape, (Shape{3, 4}));
  std::vector<float> all(12);
  std::iota(all.begin(), all.end(), 0.0f);
  EXPECT_EQ(box(*store, {0, 0}, {3, 4}), all);
  EXPECT_EQ(box(*store, {1, 2}, {2, 2}), (std::vector<float>{6, 7, 10, 11}));
  EXPECT_EQ(store->files(), (std::vector<std::string>{"a.weight/0.0", "a.weight/0.1", "a.weight/1.0", "a.weight/1.1"}));
  std::filesystem::remove(folder_ / "weights/a.weight/1.1");  // not needed for the first column
  EXPECT_EQ(box(*store, {0, 0}, {3, 1}), (std::vector<float>{0, 4, 8}));
}

TEST_F(Zarr, MayLieInAnArchive) {
  std::string archive = test::tar_member("./model_weights/a.weight/.zarray", kDescription);
  for (const int i : {0, 1})
    for (const int j : {0, 1})
      archive += test::tar_member("./model_weights/a.weight/" + std::to_string(i) + "." + std::to_string(j), chunk(i, j));
  const std::string path = folder_.write("a.nemo", archive + test::tar_end());
  const auto store = ZarrStore::open(files_below(index_tar(path), "model_weights"), path);
  EXPECT_EQ(box(*store, {1, 2}, {2, 2}), (std::vector<float>{6, 7, 10, 11}));
  EXPECT_EQ(store->files(), (std::vector<std::string>{""}));
}

TEST_F(Zarr, WhatIsNotReadIsRefusedByName) {
  refused(R"("compressor": null)", R"("compressor": {"id": "blosc"})", "compressed with 'blosc'");
  refused(R"("filters": null)", R"("filters": [{"id": "delta"}])", "the filter 'delta'");
  refused(R"("order": "C")", R"("order": "F")", "in order \"F\"");
  refused("<f4", "<V2", "zarr dtype '<V2'");
  refused(R"("zarr_format": 2)", R"("zarr_format": 3)", "of version 3");
  refused("[2, 3]", "[0, 3]", "'chunks' is not the shape");
  refused("[2, 3]", "[2]", "different dimensions");
  refused("[3, 4]", "[3, -4]", "'shape' is not the shape");
  refused("[3, 4]", "[1099511627776, 1099511627776]", "'shape' is not the shape");
}

TEST_F(Zarr, ChunksThatAreMissingOrTooShortAreNamed) {
  folder_.write("weights/a.weight/1.0", "short");
  expect_error(ErrorKind::kData, "chunk 1.0 of array 'a.weight' has 5 bytes, not 24", [&] { open(); });
  std::filesystem::remove(folder_ / "weights/a.weight/1.0");
  expect_error(ErrorKind::kData, "chunk 1.0 of array 'a.weight' is missing", [&] { open(); });
}

}  // namespace
}  // namespace ptq::checkpoint
