#include "runner/output_stream.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoint/reader.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::runner {
namespace {

using checkpoint::OutputLayout;
using checkpoint::ShardWriter;

/// Two tensors of I32 [64, 16], each in a shard of its own.
OutputLayout two_tensors() { return OutputLayout::plan({{"a", DType::kI32, {64, 16}}, {"b", DType::kI32, {64, 16}}}, 4096); }

Tensor rows_of(int32_t first) {
  Tensor rows = Tensor::empty({1, 16}, DType::kI32);
  for (int32_t i = 0; i < 16; ++i) rows.data<int32_t>()[i] = first + i;
  return rows;
}

TEST(OutputStream, PutsEveryPieceInItsPlace) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = two_tensors();
  ShardWriter::create(folder.path(), layout);
  {
    OutputStream stream(ShardWriter::open(folder.path(), layout), 200);  // about three pieces

    for (int32_t row = 63; row >= 0; --row)
      for (const char* name : {"b", "a"}) stream.push(name, 64 * row, rows_of(16 * row + (*name == 'b' ? 10000 : 0)));
    stream.finish();

    EXPECT_FALSE(stream.error());
    EXPECT_EQ(stream.bytes_written(), 2 * 64 * 64);
  }

  folder.write("model.safetensors.index.json", layout.index_json());
  const auto reader = checkpoint::open_checkpoint(folder.path());
  for (const char* name : {"a", "b"}) {
    const Tensor tensor = reader->read(name);
    for (int32_t i = 0; i < 1024; ++i) ASSERT_EQ(tensor.data<int32_t>()[i], i + (*name == 'b' ? 10000 : 0)) << name;
  }
}

TEST(OutputStream, WhatWasPushedIsInTheFileAfterAFlushAndMoreMayFollow) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kI32, {2, 16}}}, 1 << 20);
  ShardWriter::create(folder.path(), layout);
  const auto reader = checkpoint::open_checkpoint(folder.path());
  OutputStream stream(ShardWriter::open(folder.path(), layout), 1 << 20);

  stream.flush();
  for (int32_t row = 0; row < 2; ++row) {
    stream.push("a", 64 * row, rows_of(16 * row + 1));
    stream.flush();
    EXPECT_EQ(reader->read("a").data<int32_t>()[16 * row + 15], 16 * row + 16);
  }
  EXPECT_FALSE(stream.error());
}

TEST(OutputStream, APieceLargerThanTheQueueIsWrittenToo) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = OutputLayout::plan({{"a", DType::kI32, {64, 16}}}, 1 << 20);
  ShardWriter::create(folder.path(), layout);
  OutputStream stream(ShardWriter::open(folder.path(), layout), 10);

  stream.push("a", 0, Tensor::zeros({32, 16}, DType::kI32));
  stream.push("a", 2048, Tensor::zeros({32, 16}, DType::kI32));
  stream.finish();

  EXPECT_FALSE(stream.error());
  EXPECT_EQ(stream.bytes_written(), 4096);
}

TEST(OutputStream, TheFirstErrorIsKeptAndNothingHangs) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = two_tensors();
  ShardWriter::create(folder.path(), layout);
  std::filesystem::remove(folder / layout.shards()[static_cast<size_t>(layout.place("b").shard)].name);
  OutputStream stream(ShardWriter::open(folder.path(), layout), 200);

  stream.push("a", 0, rows_of(0));
  for (int32_t row = 0; row < 64; ++row) stream.push("b", 64 * row, rows_of(row));
  for (int32_t row = 1; row < 64; ++row) stream.push("a", 64 * row, rows_of(row));
  stream.finish();

  ASSERT_TRUE(stream.error());
  EXPECT_EQ(stream.error()->kind(), ErrorKind::kSystem);
  EXPECT_NE(stream.error()->report().find(folder.path()), std::string::npos) << stream.error()->report();
  EXPECT_EQ(stream.bytes_written(), 64) << "what came before the error; what came after is dropped";
}

TEST(OutputStream, EndsByItselfAndTwiceIsNoHarm) {
  const test::TemporaryFolder folder;
  const OutputLayout layout = two_tensors();
  ShardWriter::create(folder.path(), layout);
  {
    OutputStream stream(ShardWriter::open(folder.path(), layout), 1 << 20);
    stream.push("a", 64, rows_of(7));
  }
  OutputStream stream(ShardWriter::open(folder.path(), layout), 1 << 20);

  stream.finish();
  stream.finish();

  folder.write("model.safetensors.index.json", layout.index_json());
  EXPECT_EQ(checkpoint::open_checkpoint(folder.path())->read("a").data<int32_t>()[16], 7) << "the destructor writes what is queued";
}

}  // namespace
}  // namespace ptq::runner
