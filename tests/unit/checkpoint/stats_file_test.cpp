#include "checkpoint/stats_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <thread>

#include "checkpoint/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;

Stats some_stats() {
  Stats stats;
  stats.arrays["model.layers.0.self_attn.q_proj/input_amax"] = {1.5f, 0.1f, -0.0f, 3e-42f};
  stats.arrays["model.layers.0.self_attn.q_proj/deeper/count"] = {3};
  stats.arrays["model.layers.10.mlp/none"] = {};
  stats.arrays["top"] = {std::numeric_limits<float>::infinity(), std::nextafterf(1, 2)};
  stats.attributes = {{"fingerprint", "0123abcd"}, {"version", "1"}, {"empty", ""}, {"utf8", "é 龥"}, {"long", std::string(100'000, 'x')}};
  return stats;
}

TEST(StatsFile, ReadsBackWhatWasWritten) {
  const test::TemporaryFolder folder;
  const Stats stats = some_stats();

  write_stats(folder / "stats.h5", stats);
  const Stats read = read_stats(folder / "stats.h5");

  EXPECT_EQ(read.arrays, stats.arrays);
  EXPECT_EQ(read.attributes, stats.attributes);
  EXPECT_TRUE(std::signbit(read.arrays.at("model.layers.0.self_attn.q_proj/input_amax")[2]));
  EXPECT_EQ(list_files(folder.path()), (std::vector<std::string>{"stats.h5"})) << "the temporary file is left";
}

TEST(StatsFile, NothingAtAllIsAFileToo) {
  const test::TemporaryFolder folder;

  write_stats(folder / "stats.h5", {});

  EXPECT_TRUE(read_stats(folder / "stats.h5").arrays.empty());
  EXPECT_TRUE(read_stats(folder / "stats.h5").attributes.empty());
}

TEST(StatsFile, NotANumberKeepsItsBits) {
  const test::TemporaryFolder folder;
  Stats stats;
  stats.arrays["nan"] = {std::numeric_limits<float>::quiet_NaN()};

  write_stats(folder / "stats.h5", stats);

  EXPECT_EQ(std::memcmp(read_stats(folder / "stats.h5").arrays["nan"].data(), stats.arrays["nan"].data(), 4), 0);
}

TEST(StatsFile, EqualStatisticsAreEqualBytesAtAnyTime) {
  const test::TemporaryFolder folder;

  write_stats(folder / "a.h5", some_stats());
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5's times have seconds
  write_stats(folder / "b.h5", some_stats());

  EXPECT_EQ(sha256_file(folder / "a.h5"), sha256_file(folder / "b.h5"));
}

TEST(StatsFile, AnOlderFileIsReplacedWhole) {
  const test::TemporaryFolder folder;
  Stats one;
  one.arrays["x"] = {1};

  write_stats(folder / "stats.h5", some_stats());
  write_stats(folder / "stats.h5", one);

  EXPECT_EQ(read_stats(folder / "stats.h5").arrays, one.arrays);
}

TEST(StatsFile, AFileThatCannotBeMadeIsASystemErrorWithHdf5sWords) {
  const test::TemporaryFolder folder;

  expect_error(ErrorKind::kSystem, "H5Fcreate: ", [&] { write_stats(folder / "absent/stats.h5", {}); });
  expect_error(ErrorKind::kSystem, "No such file", [&] { write_stats(folder / "absent/stats.h5", {}); });
  expect_error(ErrorKind::kSystem, "No such file", [&] { read_stats(folder / "absent.h5"); });
}

TEST(StatsFile, BadNamesAreBugs) {
  const test::TemporaryFolder folder;
  for (const std::string name : {"", "/a", "a/", "a//b", "./a", "a/./b"}) {
    Stats stats;
    stats.arrays[name] = {1};

    expect_error(ErrorKind::kBug, "name of a statistic", [&] { write_stats(folder / "stats.h5", stats); });
  }
}

TEST(StatsFile, OtherFilesAreDataErrors) {
  const test::TemporaryFolder folder;
  folder.write("text.h5", "these are no statistics");
  folder.write("empty.h5", "");

  expect_error(ErrorKind::kData, "not a sound statistics file", [&] { read_stats(folder / "text.h5"); });
  expect_error(ErrorKind::kData, "not a sound statistics file", [&] { read_stats(folder / "empty.h5"); });
  expect_error(ErrorKind::kData, "not a regular file", [&] { read_stats(folder.path()); });
}

TEST(StatsFile, ATruncatedFileIsADataError) {
  const test::TemporaryFolder folder;
  write_stats(folder / "stats.h5", some_stats());
  const std::string bytes = read_text(folder / "stats.h5");

  for (const size_t kept : {bytes.size() - 1, bytes.size() / 2, bytes.size() / 10, size_t{96}, size_t{8}}) {
    folder.write("cut.h5", bytes.substr(0, kept));

    expect_error(ErrorKind::kData, "not a sound statistics file", [&] { read_stats(folder / "cut.h5"); });
  }
}

TEST(StatsFile, AChangedValueIsFoundByTheDigest) {
  const test::TemporaryFolder folder;
  Stats stats;
  stats.arrays["x"] = {1234.5f};
  write_stats(folder / "stats.h5", stats);
  std::string bytes = read_text(folder / "stats.h5");
  const float value = 1234.5f;
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(&value), 4));
  ASSERT_NE(at, std::string::npos);

  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  folder.write("stats.h5", bytes);

  expect_error(ErrorKind::kData, "digest", [&] { read_stats(folder / "stats.h5"); });
}

TEST(StatsFile, AFlippedBitAnywhereIsADataError) {
  const test::TemporaryFolder folder;
  Stats stats = some_stats();
  stats.attributes.erase("long");
  write_stats(folder / "stats.h5", stats);
  const std::string bytes = read_text(folder / "stats.h5");
  std::mt19937 random(11);

  for (int i = 0; i < 300; ++i) {
    std::string damaged = bytes;
    const size_t at = random() % bytes.size();
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (random() % 8)));
    folder.write("damaged.h5", damaged);

    expect_error(ErrorKind::kData, "digest", [&] { read_stats(folder / "damaged.h5"); });
  }
}

TEST(StatsFile, KeepsIntegersExactly) {
  const test::TemporaryFolder folder;
  Stats stats = some_stats();
  stats.integers["layer/sums"] = {0, -1, (int64_t{1} << 62) + 1, std::numeric_limits<int64_t>::min()};

  write_stats(folder / "stats.h5", stats);

  const Stats read = read_stats(folder / "stats.h5");
  EXPECT_EQ(read.integers, stats.integers);
  EXPECT_EQ(read.arrays, stats.arrays);
}

TEST(StatsFile, NamesOtherFilesThatItDoesNotRead) {
  const test::TemporaryFolder folder;
  std::filesystem::create_directory(folder / "parts");
  write_stats(folder / "parts/one.h5", some_stats());
  Stats stats;
  stats.arrays["mine"] = {1.0f};
  stats.links = {{"parts/one", "parts/one.h5"}, {"parts/absent", "parts/absent.h5"}};

  write_stats(folder / "stats.h5", stats);

  EXPECT_EQ(read_stats(folder / "stats.h5").arrays, stats.arrays);
  // By way of the link, as h5py goes.
  const std::string name = "parts/one/" + some_stats().arrays.begin()->first;
  EXPECT_EQ(StatsReader(folder / "stats.h5").floats(name), some_stats().arrays.begin()->second);
}

TEST(StatsFile, IsReadPieceByPiece) {
  const test::TemporaryFolder folder;
  Stats stats;
  stats.arrays["a/floats"] = {1.0f, 2.0f};
  stats.integers["a/integers"] = {3};
  stats.attributes["text"] = "words";
  write_stats(folder / "stats.h5", stats);

  const StatsReader reader(folder / "stats.h5");

  EXPECT_EQ(reader.names(), (std::vector<std::string>{"a/floats", "a/integers"}));
  EXPECT_TRUE(reader.has("a/floats"));
  EXPECT_FALSE(reader.has("b/floats"));
  EXPECT_TRUE(reader.has_integers("a/integers"));
  EXPECT_FALSE(reader.has_integers("a/floats"));
  std::vector<float> two(2), three(3);
  reader.floats("a/floats", two);
  EXPECT_EQ(two, stats.arrays["a/floats"]);
  EXPECT_EQ(reader.attributes(), stats.attributes);
  expect_error(ErrorKind::kData, "'a/floats' has not 3 values", [&] { reader.floats("a/floats", three); });
  expect_error(ErrorKind::kData, "it has no 'b/floats'", [&] { reader.floats("b/floats"); });
  expect_error(ErrorKind::kData, "'a/floats' is not a list of 64-bit integers", [&] { reader.integers("a/floats"); });
  expect_error(ErrorKind::kData, "'a/integers' is not a list of 32-bit floats", [&] { reader.floats("a/integers"); });
}

TEST(StatsFile, AppearsOnlyWhenItIsFinished) {
  const test::TemporaryFolder folder;
  const std::vector<float> values{1.0f};
  {
    StatsWriter writer(folder / "stats.h5");
    writer.put("a", std::span<const float>(values));
    EXPECT_FALSE(std::filesystem::exists(folder / "stats.h5"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "stats.h5"));

  StatsWriter writer(folder / "stats.h5");
  writer.put("a", std::span<const float>(values));
  writer.finish();

  EXPECT_EQ(read_stats(folder / "stats.h5").arrays.at("a"), values);
}

}  // namespace
}  // namespace ptq::checkpoint
