// Readers of checkpoints in archives: tar itself, and the stores of zarr and torch_dist on what lies in one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "checkpoint/tar_index.h"
#include "checkpoint/torch_dist_store.h"
#include "checkpoint/zarr_store.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutations.h"
#include "tests/support/make_dist_checkpoint.h"
#include "tests/support/make_tar.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::corpus;
using test::fuzz;

/// The archive with the check sums its headers should have, so that changes of them get through.
std::string with_right_sums(std::string archive) {
  constexpr size_t kBlock = 512;
  for (size_t at = 0; at + kBlock <= archive.size();) {
    const std::string header = archive.substr(at, kBlock);
    if (header == std::string(kBlock, '\0')) break;
    archive.replace(at, kBlock, test::tar_summed(header));
    const size_t size = std::strtoull(header.substr(124, 11).c_str(), nullptr, 8);
    if (size > archive.size()) break;
    at += kBlock + (size + kBlock - 1) / kBlock * kBlock;
  }
  return archive;
}

/// A corner of every array, as far as it fits into a few elements.
void read_corners(const ArrayStore& store) {
  for (const auto& [name, array] : store.arrays()) {
    constexpr int64_t kMost = 4;
    Shape sizes;
    for (const int64_t extent : array.shape) sizes.push_back(std::min(extent, kMost));
    std::vector<std::byte> corner(static_cast<size_t>(element_count(sizes) * dtype_bytes(array.dtype)));
    store.read_box(array, Shape(sizes.size(), 0), sizes, corner.data());
  }
}

/// An archive of these members.
std::string archive_of(const std::map<std::string, std::string>& members) {
  std::string archive;
  for (const auto& [name, bytes] : members) archive += test::tar_member(name, bytes);
  return archive + test::tar_end();
}

/// Chunks as they are named with either separator, of every shape the corpus describes.
std::string zarr_archive(const std::string& description) {
  std::map<std::string, std::string> members{{"w/.zarray", description}};
  for (const char* name : {"0", "0.0", "0.1", "1.0", "1.1", "0/0/0", "1/0/0"}) members["w/" + std::string(name)] = std::string(24, 'c');
  members["w/0"] = std::string(8, 's');
  return archive_of(members);
}

/// A checkpoint of two files, its metadata or one of them damaged.
std::string dist_archive(test::Mutations& metadata, test::Mutations& slices, const std::string& sound_metadata,
                         const std::map<std::string, std::string>& sound_files) {
  std::map<std::string, std::string> members = sound_files;
  const bool changes_slices = metadata.below(2) == 0;
  members[".metadata"] = changes_slices ? sound_metadata : metadata.next();
  if (changes_slices) members["__0_0.distcp"] = slices.next();
  return archive_of(members);
}

TEST(ArchiveFuzz, TheCorpusIsSound) {
  const test::TemporaryFolder folder;
  for (const std::string& text : corpus("tar")) EXPECT_EQ(index_tar(folder.write("a.tar", text)).size(), 2u);
  for (const std::string& text : corpus("zarr")) {
    const std::string path = folder.write("a.tar", zarr_archive(text));
    const auto store = ZarrStore::open(index_tar(path), path);
    EXPECT_EQ(store->arrays().size(), 1u);
    EXPECT_NO_THROW(read_corners(*store));
  }
}

TEST(ArchiveFuzz, Tar) {
  const test::TemporaryFolder folder;
  test::Mutations mutations(corpus("tar"), 6);
  fuzz(
      "tar", [&] { return mutations.below(4) == 0 ? mutations.next() : with_right_sums(mutations.next()); },
      [&](const std::string& input) {
        if (input.starts_with("\x1f\x8b")) return;  // refused with what to do, as a user's error
        const std::string path = folder.write("fuzzed.tar", input);
        for (const auto& [name, slice] : index_tar(path)) {
          EXPECT_LE(slice.offset + slice.bytes, static_cast<int64_t>(input.size()));
          EXPECT_FALSE(std::filesystem::path(name).is_absolute()) << name;
        }
      });
}

TEST(ArchiveFuzz, Zarr) {
  const test::TemporaryFolder folder;
  test::Mutations mutations(corpus("zarr"), 7);
  fuzz(
      "zarr", [&] { return zarr_archive(mutations.next()); },
      [&](const std::string& input) {
        const std::string path = folder.write("fuzzed.tar", input);
        read_corners(*ZarrStore::open(index_tar(path), path));
      });
}

TEST(ArchiveFuzz, TorchDist) {
  const test::TemporaryFolder folder;
  std::vector<test::DistArray> arrays{
      {"w",
       "uint8",
       {4, 6},
       {test::byte_chunk({0, 0}, {2, 6}, "__0_0.distcp", 'a'), test::byte_chunk({2, 0}, {2, 6}, "__1_0.distcp", 'b')}},
      {"v", "uint8", {8}, {test::byte_chunk({0}, {8}, "__0_0.distcp", 'c')}}};
  std::map<std::string, std::string> files;
  for (test::DistArray& array : arrays)
    for (test::DistChunk& chunk : array.chunks) {
      chunk.offset = static_cast<int64_t>(files[chunk.file].size());
      chunk.length = static_cast<int64_t>(chunk.slice.size());
      files[chunk.file] += chunk.slice;
    }
  const std::string metadata = test::dist_metadata(arrays);
  test::Mutations descriptions({metadata}, 8), slices({files.at("__0_0.distcp")}, 9);
  fuzz(
      "torch_dist", [&] { return dist_archive(descriptions, slices, metadata, files); },
      [&](const std::string& input) {
        const std::string path = folder.write("fuzzed.tar", input);
        read_corners(*TorchDistStore::open(index_tar(path), path));
      });
}

}  // namespace
}  // namespace ptq::checkpoint
