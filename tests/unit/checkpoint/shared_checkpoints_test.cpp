// Checkpoints other programs wrote, where the large test material is at hand.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "checkpoint/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared_folder.h"

namespace ptq::checkpoint {
namespace {

void expect_rows_are_slices(const std::string& folder) {
  SCOPED_TRACE(folder);
  const auto reader = open_checkpoint(folder);
  ASSERT_FALSE(reader->tensors().empty());
  int64_t bytes = 0;
  for (const auto& [name, entry] : reader->tensors()) {
    const Tensor whole = reader->read(name);
    const int64_t begin = entry.rows() / 3, end = entry.rows() - entry.rows() / 4;
    std::vector<std::byte> rows(static_cast<size_t>((end - begin) * entry.row_bytes()));
    reader->read_rows(entry, begin, end, rows.data());
    EXPECT_TRUE(std::equal(rows.begin(), rows.end(), whole.raw() + begin * entry.row_bytes())) << name;
    bytes += entry.bytes + static_cast<int64_t>(rows.size());
  }
  EXPECT_EQ(reader->bytes_read(), bytes);
  const std::vector<std::string> companions = reader->companion_files();
  EXPECT_NE(std::find(companions.begin(), companions.end(), "config.json"), companions.end());
}

TEST(SharedCheckpoints, EveryModelIsReadAndItsRowsAreSlicesOfTheWhole) {
  PTQ_NEEDS_SHARED(shared);
  int models = 0;
  for (const auto& folder : std::filesystem::directory_iterator(shared + "/fixtures/models")) {
    expect_rows_are_slices(folder.path().string());
    ++models;
  }
  EXPECT_GE(models, 5);
}

TEST(SharedCheckpoints, EveryHuggingFaceInputIsRead) {
  PTQ_NEEDS_SHARED(shared);
  const std::string inputs = shared + "/fixtures/input_formats/";
  for (const auto& folder : std::filesystem::directory_iterator(inputs + "hf")) expect_rows_are_slices(folder.path().string());
  expect_rows_are_slices(inputs + "hf_dsv3_fp8_block");
  expect_rows_are_slices(inputs + "hf_llama_sharded");
  expect_rows_are_slices(inputs + "hf_llama_bin_sharded");
}

TEST(SharedCheckpoints, EveryContainerHoldsTheSameTensors) {
  PTQ_NEEDS_SHARED(shared);
  const auto single = open_checkpoint(shared + "/fixtures/input_formats/hf/llama");
  for (const char* folder : {"hf_llama_sharded", "hf_llama_bin_sharded", "dcp_llama_w2"}) {
    SCOPED_TRACE(folder);
    const auto other = open_checkpoint(shared + "/fixtures/input_formats/" + folder);

    ASSERT_EQ(single->tensors().size(), other->tensors().size());
    for (const auto& [name, entry] : single->tensors()) {
      const Tensor a = single->read(name), b = other->read(name);
      EXPECT_EQ(a.shape(), b.shape()) << name;
      EXPECT_EQ(a.dtype(), b.dtype()) << name;
      EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())), 0) << name;
    }
  }
}

TEST(SharedCheckpoints, TheIndexesTotalSizeIsTheSumOfTheTensors) {
  PTQ_NEEDS_SHARED(shared);
  const std::string folder = shared + "/fixtures/input_formats/hf_llama_sharded";
  const auto reader = open_checkpoint(folder);
  int64_t bytes = 0;
  for (const auto& [name, entry] : reader->tensors()) bytes += entry.bytes;

  EXPECT_EQ(read_json(folder + "/model.safetensors.index.json")["metadata"]["total_size"].get<int64_t>(), bytes);
}

TEST(SharedCheckpoints, OtherFormatsAreRefusedByName) {
  PTQ_NEEDS_SHARED(shared);
  const std::string inputs = shared + "/fixtures/input_formats/";

  for (const char* folder : {"mcore_llama_tp2", "nemo2_llama", "bridge_llama", "legacy_llama_tp2"})
    test::expect_error(ErrorKind::kUser, "fix", [&] { open_checkpoint(inputs + folder); });
}

}  // namespace
}  // namespace ptq::checkpoint
