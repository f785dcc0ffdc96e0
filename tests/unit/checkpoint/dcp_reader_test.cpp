#include "checkpoint/dcp_reader.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/make_dist_checkpoint.h"

namespace ptq::checkpoint {
namespace {

using test::byte_chunk;
using test::expect_error;

std::vector<std::string> names_of(const std::vector<std::string>& arrays) {
  const test::TemporaryFolder folder;
  std::vector<test::DistArray> made;
  for (const std::string& name : arrays) made.push_back({name, "uint8", {2}, {byte_chunk({0}, {2}, "__0_0.distcp", 'a')}});
  write_dist_checkpoint(folder, made);
  std::vector<std::string> names;
  const auto reader = open_checkpoint(folder.path());
  for (const auto& [name, entry] : reader->tensors()) names.push_back(name);
  return names;
}

TEST(DcpReader, NamesLoseWhatATrainingScriptPutInFront) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(names_of({"lm_head.weight", "model.layers.0.w", "model.norm.w"}),
            (Names{"lm_head.weight", "model.layers.0.w", "model.norm.w"}));
  EXPECT_EQ(names_of({"model.embed_tokens.weight", "model.layers.0.w"}), (Names{"model.embed_tokens.weight", "model.layers.0.w"}));
  EXPECT_EQ(names_of({"model.lm_head.weight", "model.model.layers.0.w"}), (Names{"lm_head.weight", "model.layers.0.w"}));
  EXPECT_EQ(names_of({"model.model.layers.0.w", "optim.state.model.layers.0.w"}), (Names{"model.layers.0.w"}));
  EXPECT_EQ(names_of({"module.model.layers.0.w"}), (Names{"model.layers.0.w"}));
  EXPECT_EQ(names_of({"model.module.model.layers.0.w"}), (Names{"model.layers.0.w"}));
  EXPECT_EQ(names_of({"model.language_model.layers.0.w"}), (Names{"model.language_model.layers.0.w"}));
  expect_error(ErrorKind::kData, "'decoder.layers.w'", [] { names_of({"decoder.layers.w"}); });
  expect_error(ErrorKind::kData, "no array", [] { names_of({}); });
}

TEST(DcpReader, RowsCrossChunkBorders) {
  const test::TemporaryFolder folder;
  write_dist_checkpoint(
      folder,
      {{"model.w", "uint8", {5, 2}, {byte_chunk({0, 0}, {3, 2}, "__0_0.distcp", 'a'), byte_chunk({3, 0}, {2, 2}, "__1_0.distcp", 'b')}},
       {"model.scale", "uint8", {}, {byte_chunk({}, {}, "__1_0.distcp", 's')}}});
  folder.write("config.json", "{}");
  const auto reader = open_checkpoint(folder.path());
  std::string rows(6, '?');

  reader->read_rows(reader->at("model.w"), 2, 5, reinterpret_cast<std::byte*>(rows.data()));

  EXPECT_EQ(rows, "aabbbb");
  EXPECT_EQ(*reader->read("model.scale").data<uint8_t>(), 's');
  EXPECT_EQ(reader->bytes_read(), 7);
  EXPECT_EQ(reader->format(), "PyTorch distributed");
  EXPECT_EQ(reader->at("model.w").file, "__0_0.distcp");
  EXPECT_EQ(reader->files(), (std::vector<std::string>{".metadata", "__0_0.distcp", "__1_0.distcp"}));
  EXPECT_EQ(reader->companion_files(), (std::vector<std::string>{"config.json"}));
}

TEST(DcpReader, MegatronsCheckpointsAreNotTaken) {
  const test::TemporaryFolder folder;
  write_dist_checkpoint(folder, {});
  EXPECT_TRUE(DcpReader::accepts(folder.path()));

  folder.write("metadata.json", R"({"sharded_backend":"torch_dist"})");

  EXPECT_FALSE(DcpReader::accepts(folder.path()));
}

}  // namespace
}  // namespace ptq::checkpoint
