#include "checkpoint/file_descriptor.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "checkpoint/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

TEST(FileDescriptor, TheParentOfANameIsItsFolder) {
  EXPECT_EQ(parent_folder("a"), ".");
  EXPECT_EQ(parent_folder("a/"), ".");
  EXPECT_EQ(parent_folder("a/b"), "a");
  EXPECT_EQ(parent_folder("a//b//"), "a");
  EXPECT_EQ(parent_folder("/a"), "/");
  EXPECT_EQ(parent_folder("/a/b"), "/a");
  EXPECT_EQ(parent_folder("/"), "/");
  EXPECT_EQ(parent_folder(""), ".");
}

TEST(FileDescriptor, AReadEndsAtTheEndOfTheFile) {
  const test::TemporaryFolder folder;
  const Fd fd = open_file(folder.write("a", "0123456789"), O_RDONLY);
  std::string out(8, '-');

  EXPECT_EQ(read_at(fd.get(), "a", 6, out.data(), 8), 4);
  EXPECT_EQ(out, "6789----");
  EXPECT_EQ(read_at(fd.get(), "a", 100, out.data(), 8), 0);
}

TEST(FileDescriptor, FailedCallsCarryTheCallThePathAndTheErrnosWords) {
  const test::TemporaryFolder folder;
  const std::string path = folder.write("a", "x");
  const Fd fd = open_file(path, O_RDONLY);

  test::expect_error(ErrorKind::kSystem, "pwrite: Bad file descriptor", [&] { write_at(fd.get(), path, 0, "y", 1); });
  test::expect_error(ErrorKind::kSystem, path, [&] { write_at(fd.get(), path, 0, "y", 1); });
  test::expect_error(ErrorKind::kSystem, "pread: Invalid argument", [&] {
    char byte = 0;
    read_at(fd.get(), path, -1, &byte, 1);
  });
}

TEST(FileDescriptor, AFullDeviceIsASystemErrorWithAFix) {
  if (!exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const Fd fd = open_file("/dev/full", O_WRONLY);

  test::expect_error(ErrorKind::kSystem, "free disk space", [&] { write_at(fd.get(), "/dev/full", 0, "y", 1); });
}

}  // namespace
}  // namespace ptq::checkpoint
