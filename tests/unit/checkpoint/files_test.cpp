#include "checkpoint/files.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;

TEST(Files, TextIsWrittenAndReadBackWithItsNuls) {
  const test::TemporaryFolder folder;
  const std::string text("a\0b\n\xff", 5);

  write_text(folder / "a", "something longer that must be gone");
  write_text(folder / "a", text);

  EXPECT_EQ(read_text(folder / "a"), text);
  expect_error(ErrorKind::kSystem, "open: No such file", [&] { read_text(folder / "absent"); });
  expect_error(ErrorKind::kSystem, "open: No such file", [&] { write_text(folder / "absent/a", ""); });
}

TEST(Files, AFileWithoutASizeOfItsOwnIsReadToItsEnd) {
  if (!exists("/proc/self/status")) GTEST_SKIP() << "no /proc here";

  EXPECT_NE(read_text("/proc/self/status").find("Threads:"), std::string::npos);
}

TEST(Files, JsonKeepsTheOrderOfItsKeys) {
  const test::TemporaryFolder folder;
  folder.write("a.json", R"({"z":1,"a":{"y":[1,2],"b":null}})");

  EXPECT_EQ(read_json(folder / "a.json").dump(), R"({"z":1,"a":{"y":[1,2],"b":null}})");
}

TEST(Files, TextThatIsNotJsonIsADataErrorWithLineAndColumn) {
  const test::TemporaryFolder folder;
  folder.write("a.json", "{\n  \"a\": 1,\n  oops\n}");
  folder.write("nul.json", std::string("{}\0", 3));
  folder.write("deep.json", std::string(1'000'000, '['));
  folder.write("big.json", "[1e999]");
  folder.write("empty.json", "");

  expect_error(ErrorKind::kData, "a.json:3:3", [&] { read_json(folder / "a.json"); });
  expect_error(ErrorKind::kData, "nul.json:1:3", [&] { read_json(folder / "nul.json"); });
  expect_error(ErrorKind::kData, "deeper than 100", [&] { read_json(folder / "deep.json"); });
  expect_error(ErrorKind::kData, "not JSON", [&] { read_json(folder / "big.json"); });
  expect_error(ErrorKind::kData, "not JSON", [&] { read_json(folder / "empty.json"); });
}

TEST(Files, ACopyHasTheSameBytesAndItsFoldersAreMade) {
  const test::TemporaryFolder folder;
  std::string text((9u << 20) + 3, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 2654435761u >> 11);
  folder.write("a", text);

  copy_file(folder / "a", folder / "b/c/d");

  EXPECT_EQ(read_text(folder / "b/c/d"), text);
}

TEST(Files, FoldersAreMadeOnceAndRemovedWhole) {
  const test::TemporaryFolder folder;

  make_folder(folder / "a/b/c");
  make_folder(folder / "a/b/c/");
  folder.write("a/b/file", "x");
  sync_tree(folder / "a");
  remove_tree(folder / "a");
  remove_tree(folder / "a");

  EXPECT_FALSE(exists(folder / "a"));
  folder.write("file", "x");
  expect_error(ErrorKind::kSystem, "mkdir", [&] { make_folder(folder / "file"); });
  expect_error(ErrorKind::kSystem, "No such file", [&] { sync_tree(folder / "absent"); });
}

TEST(Files, PublishingMovesAFolderToItsNewName) {
  const test::TemporaryFolder folder;
  folder.write("work/a", "x");

  publish(folder / "work", folder / "output/");

  EXPECT_EQ(read_text(folder / "output/a"), "x");
  EXPECT_FALSE(exists(folder / "work"));
}

TEST(Files, PublishingReplacesNothing) {
  const test::TemporaryFolder folder;
  folder.write("work/a", "x");
  make_folder(folder / "empty");
  folder.write("full/b", "y");
  std::filesystem::create_symlink("absent", folder / "dangling");

  for (const char* output : {"empty", "full", "dangling"})
    expect_error(ErrorKind::kSystem, "exists already", [&] { publish(folder / "work", folder / output); });
  expect_error(ErrorKind::kSystem, "rename", [&] { publish(folder / "absent", folder / "output"); });

  EXPECT_TRUE(exists(folder / "work/a"));
  EXPECT_EQ(read_text(folder / "full/b"), "y");
}

TEST(Files, Sha256AgreesWithThePublishedVectors) {  // FIPS 180-4 examples: "", "abc", a million 'a'
  const test::TemporaryFolder folder;
  folder.write("abc", "abc");
  folder.write("many", std::string(1'000'000, 'a'));

  EXPECT_EQ(sha256_text(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_text("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_file(folder / "abc"), sha256_text("abc"));
  EXPECT_EQ(sha256_file(folder / "many"), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Files, AFileOfSeveralChunksHasTheDigestOfItsBytes) {
  const test::TemporaryFolder folder;
  for (const size_t bytes : {size_t{8} << 20, (size_t{16} << 20) + 1}) {
    const std::string text(bytes, 'q');
    folder.write("a", text);

    EXPECT_EQ(sha256_file(folder / "a"), sha256_text(text));
  }
}

TEST(Files, AListHasAllRegularFilesSorted) {
  const test::TemporaryFolder folder;
  for (const char* name : {"b", "a/z", "a/b/c", ".hidden"}) folder.write(name, "");
  std::filesystem::create_symlink("b", folder / "link");
  std::filesystem::create_directory_symlink("..", folder / "a/up");

  EXPECT_EQ(list_files(folder.path()), (std::vector<std::string>{".hidden", "a/b/c", "a/z", "b", "link"}));
  EXPECT_EQ(list_files(folder.path() + "/"), list_files(folder.path()));
  expect_error(ErrorKind::kSystem, "No such file", [&] { list_files(folder / "absent"); });
}

TEST(Files, FreeBytesAreThoseOfTheDisk) {
  const test::TemporaryFolder folder;

  EXPECT_GT(free_bytes(folder.path()), 0);
  expect_error(ErrorKind::kSystem, "statvfs", [&] { free_bytes(folder / "absent"); });
}

}  // namespace
}  // namespace ptq::checkpoint
