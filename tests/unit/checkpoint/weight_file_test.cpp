#include "checkpoint/weight_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <vector>

#include "kernels/core/error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::test {
namespace {

/// A file of 9 MiB and 100 bytes whose every 8 bytes say where they are.
std::vector<std::byte> write_numbers(const std::string& path) {
  std::vector<uint64_t> numbers(((9 << 20) + 104) / 8);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = i * 0x9e3779b97f4a7c15ull;
  std::vector<std::byte> bytes((9 << 20) + 100);
  std::memcpy(bytes.data(), numbers.data(), bytes.size());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

TEST(WeightFile, GivesTheSameBytesAtAnyPlaceCachedOrNot) {
  const TemporaryFolder folder;
  const std::string path = folder / "weights";
  const std::vector<std::byte> all = write_numbers(path);
  // Written back and dropped, so that the first reads go past the page cache where the file system can.
  const checkpoint::Fd fd = checkpoint::open_file(path, O_RDONLY);
  checkpoint::sync_file(fd.get(), path);
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);

  const checkpoint::WeightFile file(path);
  const auto size = static_cast<int64_t>(all.size());
  ASSERT_EQ(file.bytes(), size);
  for (const auto& [offset, bytes] : std::vector<std::pair<int64_t, int64_t>>{{0, size},
                                                                              {0, 4 << 20},
                                                                              {1, (4 << 20) + 3},
                                                                              {4095, 1 << 20},
                                                                              {4096, 5 << 20},
                                                                              {8191, 17},
                                                                              {(5 << 20) + 77, size - (5 << 20) - 77}}) {
    std::vector<std::byte> out(static_cast<size_t>(bytes));
    EXPECT_EQ(file.read(offset, out.data(), bytes), bytes) << offset;
    EXPECT_EQ(std::memcmp(out.data(), all.data() + offset, out.size()), 0) << offset << " " << bytes;
  }
}

TEST(WeightFile, ReadsUpToTheEndOfTheFile) {
  const TemporaryFolder folder;
  const std::string path = folder / "weights";
  const std::vector<std::byte> all = write_numbers(path);
  const checkpoint::WeightFile file(path);

  std::vector<std::byte> out(3 << 20);

  EXPECT_EQ(file.read(8 << 20, out.data(), 3 << 20), (1 << 20) + 100);
  EXPECT_EQ(file.read(static_cast<int64_t>(all.size()), out.data(), 10), 0);
}

TEST(WeightFile, OfAMissingFileIsASystemError) {
  const TemporaryFolder folder;

  try {
    const checkpoint::WeightFile file(folder / "nothing");
    FAIL() << "opened";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kSystem);
  }
}

}  // namespace
}  // namespace ptq::test
