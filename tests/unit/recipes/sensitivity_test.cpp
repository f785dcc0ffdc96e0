#include "recipes/sensitivity.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "checkpoint/stats_file.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::recipes {
namespace {

Sensitivity example() {
  return {{"model-1", "data-1", "nvfp4_awq, fp8, none", "weights", "layer", 128},
          {"nvfp4_awq", "fp8", "none"},
          {{"a.q,k", {"a.q", "a.k"}, 0, 100, 1, {{0, 450}, {1, 800}, {2, 1600}}}, {"b.down", {"b.down"}, 7, 50, 4, {{2, 800}}}},
          {{0.1, 1e-300, 0}, {0}}};
}

std::string bytes_of(const std::string& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

TEST(Scores, AreReadAsTheyWereWritten) {
  const test::TemporaryFolder folder;
  const Sensitivity written = example();
  write_scores(folder / "scores.h5", written);

  const Sensitivity read = read_scores(folder / "scores.h5");

  EXPECT_EQ(read.presets, written.presets);
  EXPECT_EQ(read.scores, written.scores) << "to the last bit";
  ASSERT_EQ(read.groups.size(), 2u);
  EXPECT_EQ(read.groups[0].modules, written.groups[0].modules);
  EXPECT_EQ(read.groups[1].name, "b.down");
  EXPECT_EQ(read.groups[1].layer, 7);
  EXPECT_EQ(read.groups[1].weights, 50);
  EXPECT_EQ(read.groups[1].factor, 4);
  EXPECT_EQ(read.groups[1].options[0].candidate, 2);
  EXPECT_EQ(read.groups[0].options[1].bits, 800);
  EXPECT_EQ(read.identity.rows, 128);
  EXPECT_NO_THROW(check_identity(read.identity, written.identity, "s", "key"));
  write_scores(folder / "again.h5", written);
  EXPECT_EQ(bytes_of(folder / "scores.h5"), bytes_of(folder / "again.h5"));
}

TEST(Scores, WhatWasDecidedIsBesideThemAndDoesNotBindTheReader) {
  const test::TemporaryFolder folder;
  write_scores(folder / "scores.h5", example(), {{1, 0}, {}});

  EXPECT_EQ(checkpoint::StatsReader(folder / "scores.h5").integers("groups/choice"), (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(read_scores(folder / "scores.h5").scores, example().scores);
  write_scores(folder / "undecided.h5", example());
  EXPECT_FALSE(checkpoint::StatsReader(folder / "undecided.h5").has_integers("groups/choice"));
}

TEST(Scores, OfTheKvCacheAreReadAsTheyWereWritten) {
  const test::TemporaryFolder folder;
  Sensitivity written = example();
  write_scores(folder / "plain.h5", written);
  written.kv = {
      {"fp8", "nvfp4"}, {{"a", {"a"}, 0, 64, 1, {{0, 512}, {1, 288}}}, {"b", {"b"}, 1, 32, 1, {{0, 256}}}}, {{1e-9, 0.5}, {0.25}}};
  write_scores(folder / "scores.h5", written);

  const KvSensitivity read = read_scores(folder / "scores.h5").kv;

  EXPECT_TRUE(read_scores(folder / "plain.h5").kv.groups.empty());
  EXPECT_EQ(read.formats, written.kv.formats);
  EXPECT_EQ(read.scores, written.kv.scores);
  ASSERT_EQ(read.groups.size(), 2u);
  EXPECT_EQ(read.groups[0].name, "a");
  EXPECT_EQ(read.groups[0].options[1].bits, 288);
  EXPECT_EQ(read.groups[1].weights, 32);
  EXPECT_EQ(read_scores(folder / "scores.h5").scores, written.scores);
  written.kv.groups[1].options[0].candidate = 2;
  write_scores(folder / "wrong.h5", written);
  test::expect_error(ErrorKind::kData, "an option is no candidate", [&] { read_scores(folder / "wrong.h5"); });
}

TEST(Scores, HoldTheNamesOfALargeModel) {
  const test::TemporaryFolder folder;
  Sensitivity large = example();
  for (int m = 0; m < 45'000; ++m) large.groups[0].modules.push_back("model.layers.60.mlp.experts." + std::to_string(m) + ".gate_proj");
  write_scores(folder / "scores.h5", large);

  EXPECT_EQ(read_scores(folder / "scores.h5").groups[0].modules, large.groups[0].modules);
}

TEST(Scores, NoChangeOfAByteGoesUnnoticed) {
  const test::TemporaryFolder folder;
  write_scores(folder / "scores.h5", example());
  const std::string bytes = bytes_of(folder / "scores.h5");

  for (size_t at = 0; at < bytes.size(); at += 97) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    folder.write("damaged.h5", damaged);
    test::expect_error(ErrorKind::kData, "damaged.h5", [&] { read_scores(folder / "damaged.h5"); });
  }
  for (const size_t kept : {size_t{0}, size_t{100}, bytes.size() - 1}) {
    folder.write("short.h5", bytes.substr(0, kept));
    test::expect_error(ErrorKind::kData, "short.h5", [&] { read_scores(folder / "short.h5"); });
  }
}

TEST(Scores, OtherFilesAreToldApart) {
  const test::TemporaryFolder folder;
  checkpoint::write_stats(folder / "calibration.h5", {{{"x", {1.0f}}}, {}, {}, {}});

  test::expect_error(ErrorKind::kData, "not one of AutoQuantize's scores", [&] { read_scores(folder / "calibration.h5"); });
  test::expect_error(ErrorKind::kUser, "no such file", [&] { read_scores(folder / "missing.h5"); });
  test::expect_error(ErrorKind::kUser, "no such file", [&] { read_scores(folder.path()); });
}

TEST(Scores, ThatContradictThemselvesAreDamage) {
  const test::TemporaryFolder folder;
  const auto expect_refused = [&](const std::string& words, const auto& change) {
    Sensitivity wrong = example();
    change(wrong);
    write_scores(folder / "scores.h5", wrong);
    test::expect_error(ErrorKind::kData, words, [&] { read_scores(folder / "scores.h5"); });
  };

  expect_refused("no candidate", [](Sensitivity& s) { s.groups[0].options[1].candidate = 3; });
  expect_refused("negative or infinite", [](Sensitivity& s) { s.scores[0][0] = -1; });
  expect_refused("negative or infinite", [](Sensitivity& s) { s.scores[0][0] = std::numeric_limits<double>::quiet_NaN(); });
  expect_refused("negative or infinite", [](Sensitivity& s) { s.groups[0].options[0].bits = -1; });
  expect_refused("negative", [](Sensitivity& s) { s.groups[0].factor = 0; });
  expect_refused("immense", [](Sensitivity& s) { s.groups[0].options[0].bits = int64_t{1} << 61; });
  expect_refused("no options", [](Sensitivity& s) {
    s.groups[1].options.clear();
    s.scores[1].clear();
  });
}

TEST(Scores, OfSomethingElseNameWhatDiffers) {
  const auto expect_named = [](const std::string& words, const auto& change) {
    SensitivityIdentity other = example().identity;
    change(other);
    test::expect_error(ErrorKind::kUser, words, [&] { check_identity(other, example().identity, "scores.h5", "r.yaml:3  key"); });
  };

  expect_named("of another model: theirs is m, this run's model-1", [](SensitivityIdentity& i) { i.model_fingerprint = "m"; });
  expect_named("of other calibration data", [](SensitivityIdentity& i) { i.data_fingerprint = "d"; });
  expect_named("of other candidates", [](SensitivityIdentity& i) { i.candidates = "fp8, none"; });
  expect_named("of another cost model", [](SensitivityIdentity& i) { i.cost = "active_moe"; });
  expect_named("of another expert granularity", [](SensitivityIdentity& i) { i.expert_granularity = "expert"; });
  expect_named("of another number of rows", [](SensitivityIdentity& i) { i.rows = 4; });
}

}  // namespace
}  // namespace ptq::recipes
