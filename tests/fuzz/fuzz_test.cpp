// Readers of untrusted bytes in one piece: pickles, torch.save files, metadata, headers.

#include <gtest/gtest.h>

#include "checkpoint/chunk_grid.h"
#include "checkpoint/pickle.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_dist_metadata.h"
#include "checkpoint/torch_pickle.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutations.h"
#include "tests/support/make_torch_file.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::corpus;
using test::fuzz;

ByteSlice slice_of(const std::string& bytes) { return {std::make_shared<const std::string>(bytes), "fuzzed"}; }

/// Walks everything that is a tensor and reads its rows.
void read_tensors(const TorchFile& file) {
  for (const auto& [key, value] : file.root().entries()) {
    if (!TorchFile::is_tensor(value)) continue;
    try {
      const TorchTensor tensor = file.tensor(value, std::string(key.text().value_or("")));
      std::vector<std::byte> rows(static_cast<size_t>(tensor.bytes()));
      read_torch_rows(file.slice(), tensor, 0, tensor.rows(), rows.data());
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kData) throw;  // the others are still to be read
    }
  }
}

TEST(Fuzz, TheCorpusIsSound) {
  const test::TemporaryFolder folder;
  for (const std::string& text : corpus("pickle")) EXPECT_NO_THROW(parse_pickle(text, "corpus"));
  for (const std::string& text : corpus("torch_pickle")) EXPECT_EQ(parse_pickle(text, "corpus").persistent().size(), 4u);
  for (const std::string& text : corpus("torch_file")) EXPECT_NO_THROW(read_tensors(TorchFile(slice_of(text))));
  for (const std::string& text : corpus("metadata")) EXPECT_FALSE(parse_torch_dist_metadata(text, "corpus").arrays.empty());
  for (const std::string& text : corpus("safetensors")) EXPECT_NO_THROW(read_safetensors_header(folder.write("a.safetensors", text)));
}

TEST(Fuzz, Pickle) {
  test::Mutations mutations(corpus("pickle"), 1);
  fuzz(
      "pickle", [&] { return mutations.next(); },
      [](const std::string& input) {
        const PickleTree tree = parse_pickle(input, "fuzzed", {.drop_from_key = "c"});
        for (const auto& [key, value] : tree.root().entries()) value.find(key.text().value_or("a"));
        tree.persistent();
      });
}

TEST(Fuzz, TorchFile) {
  test::Mutations files(corpus("torch_file"), 2), pickles(corpus("torch_pickle"), 3);
  const auto next = [&] {
    if (files.below(2) == 0) return files.next();
    // A container that is sound, so that changes of the pickle get through to it.
    const std::string storage(24, 'x');
    return test::make_zip({{.name = "a/data.pkl", .bytes = pickles.next()},
                           {.name = "a/data/0", .bytes = storage},
                           {.name = "a/data/1", .bytes = storage},
                           {.name = "a/data/2", .bytes = storage}});
  };
  fuzz("torch_file", next, [](const std::string& input) { read_tensors(TorchFile(slice_of(input))); });
}

TEST(Fuzz, TorchDistMetadata) {
  test::Mutations mutations(corpus("metadata"), 4);
  fuzz(
      "metadata", [&] { return mutations.next(); },
      [](const std::string& input) {
        for (const TorchDistMetadata::Array& array : parse_torch_dist_metadata(input, "fuzzed").arrays) {
          std::vector<Box> boxes;
          for (const TorchDistChunk& chunk : array.chunks) boxes.push_back(chunk.box);
          const ChunkGrid grid(array.entry.shape, boxes, array.entry.name, "fuzzed");
          EXPECT_EQ(grid.touched({Shape(array.entry.shape.size(), 0), array.entry.shape}).size(), boxes.size());
        }
      });
}

TEST(Fuzz, SafetensorsHeader) {
  const test::TemporaryFolder folder;
  test::Mutations mutations(corpus("safetensors"), 5);
  fuzz(
      "safetensors", [&] { return mutations.next(); },
      [&](const std::string& input) { read_safetensors_header(folder.write("fuzzed.safetensors", input)); });
}

}  // namespace
}  // namespace ptq::checkpoint
