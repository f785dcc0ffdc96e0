#include "checkpoint/torch_zip.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/expect_error.h"
#include "tests/support/make_torch_file.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;
using test::make_zip;
using test::ZipPart;

ByteSlice slice_of(const std::string& bytes) { return {std::make_shared<const std::string>(bytes), "a.pt"}; }

void expect_refused(const std::string& bytes, const std::string& words) {
  expect_error(ErrorKind::kData, words, [&] {
    const ByteSlice slice = slice_of(bytes);
    const TorchZip zip(slice);
    zip.place(slice, "data.pkl");
    zip.place(slice, "data/0");
  });
}

const std::vector<ZipPart> kParts = {{.name = "x/data.pkl", .bytes = "N."},
                                     {.name = "x/byteorder", .bytes = "little"},
                                     {.name = "x/data/0", .bytes = "abcdef", .extra_bytes = 13},
                                     {.name = "x/data/1", .bytes = ""}};

std::vector<ZipPart> changed(size_t part, const std::function<void(ZipPart&)>& change) {
  std::vector<ZipPart> parts = kParts;
  change(parts[part]);
  return parts;
}

TEST(TorchZip, EntriesAreFoundBehindTheirLocalHeaders) {
  for (const bool zip64 : {true, false}) {
    const ByteSlice slice = slice_of(make_zip(kParts, {.zip64 = zip64}));
    const TorchZip zip(slice);

    EXPECT_TRUE(TorchZip::accepts(slice));
    EXPECT_TRUE(zip.has("data/1"));
    EXPECT_FALSE(zip.has("data/2"));
    const TorchZip::Place place = zip.place(slice, "data/0");
    EXPECT_EQ(slice.text(place.offset, place.bytes), "abcdef");
    EXPECT_EQ(zip.place(slice, "data/1").bytes, 0);
    expect_error(ErrorKind::kData, "no entry 'x/data/2'", [&] { zip.place(slice, "data/2"); });
  }
}

TEST(TorchZip, OffsetsCountFromTheSliceInALargerFile) {
  const test::TemporaryFolder folder;
  const std::string zip_bytes = make_zip(kParts);
  const auto file = std::make_shared<const WeightFile>(folder.write("shard", "before" + zip_bytes + "behind"));
  const ByteSlice slice(file, "shard", 6, static_cast<int64_t>(zip_bytes.size()));

  const TorchZip::Place place = TorchZip(slice).place(slice, "data/0");

  EXPECT_EQ(slice.text(place.offset, place.bytes), "abcdef");
  EXPECT_EQ(slice.file_offset(), 6);
  expect_error(ErrorKind::kData, "truncated", [&] { ByteSlice(file, "shard", 6, static_cast<int64_t>(zip_bytes.size()) + 7); });
  expect_error(ErrorKind::kData, "truncated", [&] { ByteSlice(file, "shard", 1, std::numeric_limits<int64_t>::max()); });
}

TEST(TorchZip, EveryTruncationIsRefused) {
  const std::string whole = make_zip(kParts);
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) EXPECT_THROW(TorchZip(slice_of(whole.substr(0, bytes))), Error) << bytes;
  expect_refused(whole + "x", "truncated or was changed");
}

TEST(TorchZip, WhatTorchNeverWritesIsRefused) {
  expect_refused(make_zip(changed(2, [](ZipPart& part) { part.flags |= 1; })), "encrypted");
  expect_refused(make_zip(changed(2, [](ZipPart& part) { part.method = 8; })), "compressed");
  expect_refused(make_zip(changed(2, [](ZipPart& part) { part.name = "x/data.pkl"; })), "there twice");
  expect_refused(make_zip(changed(2, [](ZipPart& part) { part.name = "y/data.pkl"; })), "more than one data.pkl");
  expect_refused(make_zip(changed(0, [](ZipPart& part) { part.name = "x/model.json"; })), "no data.pkl");
  expect_refused(make_zip(changed(1, [](ZipPart& part) { part.bytes = "big"; })), "not little-endian");
  expect_refused(make_zip(changed(3, [](ZipPart& part) { part.name = "x/constants.pkl"; })), "TorchScript");
  expect_refused(make_zip(changed(3, [](ZipPart& part) { part.name = "x/code/a.py"; })), "TorchScript");
  expect_refused(make_zip(changed(3, [](ZipPart& part) { part.name = ""; })), "no proper name");
  for (const bool zip64 : {true, false}) expect_refused(make_zip(kParts, {.disk = 1, .zip64 = zip64}), "several disks");
}

TEST(TorchZip, OffsetsThatLeadElsewhereAreRefused) {
  expect_refused(make_zip(changed(2, [](ZipPart& part) { part.offset_shift = 1 << 20; })), "outside of it");
  expect_refused(make_zip(changed(2, [](ZipPart& part) { part.offset_shift = 1; })), "not where the directory says");
  expect_refused(make_zip(changed(2, [](ZipPart& part) { part.offset_shift = -1; })), "not where the directory says");
  expect_refused(make_zip(kParts, {.directory_shift = 1}), "");
  expect_refused(make_zip(kParts, {.directory_shift = -1}), "damaged");
  expect_refused(make_zip(kParts, {.directory_shift = 1 << 30}), "outside of it");
}

}  // namespace
}  // namespace ptq::checkpoint
