#include "checkpoint/open_files.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

TEST(OpenFiles, NoMoreThanTheLimitStayOpen) {
  const test::TemporaryFolder folder;
  for (const char* name : {"a", "b", "c"}) folder.write(name, name);
  OpenFiles files(folder.path(), 2);

  const std::weak_ptr<const WeightFile> a = files.open("a"), b = files.open("b");
  files.open("a");
  const auto c = files.open("c");

  EXPECT_FALSE(a.expired()) << "used after b was";
  EXPECT_TRUE(b.expired());
  EXPECT_EQ(files.open("c"), c);
  EXPECT_EQ(files.open("b")->bytes(), 1);
  EXPECT_TRUE(a.expired());
}

TEST(OpenFiles, AFileThatChangedWhileItWasClosedIsADataError) {
  const test::TemporaryFolder folder;
  folder.write("a", "a");
  folder.write("b", "b");
  OpenFiles files(folder.path(), 1);
  files.open("a");
  files.open("b");
  folder.write("a", "longer");

  test::expect_error(ErrorKind::kData, "had 1 bytes", [&] { files.open("a"); });
  EXPECT_THROW(files.open("absent"), Error);
}

TEST(OpenFiles, ThreadsShareThem) {
  const test::TemporaryFolder folder;
  for (int i = 0; i < 10; ++i) folder.write(std::to_string(i), std::string(static_cast<size_t>(i), 'x'));
  OpenFiles files(folder.path(), 3);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 300; ++i) EXPECT_EQ(files.open(std::to_string((i * (t + 1)) % 10))->bytes(), (i * (t + 1)) % 10);
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace ptq::checkpoint
