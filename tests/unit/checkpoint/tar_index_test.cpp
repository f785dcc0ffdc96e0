// Archives put together header by header, so that every part of one can be wrong.

#include "checkpoint/tar_index.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/make_tar.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;
using test::tar_end;
using test::tar_header;
using test::tar_member;

class TarIndex : public ::testing::Test {
 protected:
  FileSet index(const std::string& bytes) { return index_tar(folder_.write("a.nemo", bytes)); }
  void refused(const std::string& bytes, const std::string& words) {
    const std::string path = folder_.write("a.nemo", bytes);
    expect_error(ErrorKind::kData, words, [&] { index_tar(path); });
  }
  test::TemporaryFolder folder_;
};

TEST_F(TarIndex, MembersAreReadInPlace) {
  const FileSet files =
      index(tar_header("./", 0, '5') + tar_member("./a/b.txt", "hello") + tar_member("c", std::string(513, 'c')) + tar_end());
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(read_slice(files.at("a/b.txt"), 100), "hello");
  EXPECT_EQ(read_slice(files.at("c"), 1000), std::string(513, 'c'));
  EXPECT_EQ(files.at("a/b.txt").offset, 1024);
  EXPECT_EQ(files_below(files, "a").count("b.txt"), 1u);
}

TEST_F(TarIndex, LongNamesComeFromPrefixGnuAndPaxHeaders) {
  std::string with_prefix = tar_header("name", 1, '0', "folder");
  const std::string gnu = "deep/" + std::string(200, 'g'), pax = "deep/" + std::string(200, 'p');
  const std::string record = " path=" + pax + "\n", size_record = "10 size=3\n";
  const FileSet files =
      index(with_prefix + test::tar_padded("x") + tar_member("././@LongLink", gnu + std::string(1, '\0'), 'L') + tar_member("cut", "gg") +
            tar_member("PaxHeader", std::to_string(record.size() + 3) + record + size_record, 'x') + tar_header("cut", 0) +
            test::tar_padded("ppp") + tar_end());
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(files.count("folder/name"), 1u);
  EXPECT_EQ(files.at(gnu).bytes, 2);
  EXPECT_EQ(read_slice(files.at(pax), 10), "ppp");
}

TEST_F(TarIndex, SizesMayBeInBase256) {
  const FileSet files = index(test::tar_header_base256("big", 5) + test::tar_padded("12345") + tar_end());
  EXPECT_EQ(read_slice(files.at("big"), 10), "12345");
}

TEST_F(TarIndex, WhatLeadsOutOfTheArchiveIsRefused) {
  refused(tar_member("/etc/passwd", "x") + tar_end(), "has an absolute name");
  refused(tar_member("a/../../b", "x") + tar_end(), "has '..' in its name");
  refused(tar_header("link", 0, '2') + tar_end(), "is a link");
  refused(tar_header("link", 0, '1') + tar_end(), "is a link");
  refused(tar_header("tty", 0, '3') + tar_end(), "is a device");
  refused(tar_header("holes", 0, 'S') + tar_end(), "is a sparse file");
  refused(tar_member("a", "x") + tar_member("./a", "y") + tar_end(), "two members");
}

TEST_F(TarIndex, DamagedArchivesAreRefused) {
  std::string wrong_sum = tar_member("a", "x") + tar_end();
  wrong_sum[0] = 'b';
  refused(wrong_sum, "wrong check sum");
  refused(tar_header("a", 5000) + "short", "ends inside its member");
  refused(tar_member("a", "x"), "has no end mark");
  refused(tar_member("PaxHeader", "99 path=a\n", 'x') + tar_end(), "pax header");
}

TEST_F(TarIndex, CompressedArchivesNameTheCommandThatHelps) {
  const std::string path = folder_.write("a.nemo", "\x1f\x8b" + std::string(600, 'x'));
  EXPECT_TRUE(looks_like_tar(path));
  expect_error(ErrorKind::kUser, "gunzip < ", [&] { index_tar(path); });
  EXPECT_FALSE(looks_like_tar(folder_.write("b", "not a tar")));
}

}  // namespace
}  // namespace ptq::checkpoint
