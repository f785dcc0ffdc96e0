#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kernels/core/error.h"
#include "tests/fuzz/counted_memory.h"
#include "tests/support/model_files.h"

namespace ptq::test {

namespace {

using Clock = std::chrono::steady_clock;

/// The input at hand, in a mapped file that outlives a crash.
class KeptInput {
 public:
  explicit KeptInput(const std::string& reader) : path_(std::string(PTQ_BINARY_DIR) + "/fuzz-" + reader + ".input") {
    const int file = ::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0 || ::ftruncate(file, kBytes) != 0) throw std::runtime_error("cannot write " + path_);
    bytes_ = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    ::close(file);
    if (bytes_ == MAP_FAILED) throw std::runtime_error("cannot map " + path_);
  }
  ~KeptInput() {
    ::munmap(bytes_, kBytes);
    if (!::testing::Test::HasFailure()) std::filesystem::remove(path_);
  }
  KeptInput(const KeptInput&) = delete;
  KeptInput& operator=(const KeptInput&) = delete;
  /// Its length, 8 bytes, then itself.
  void keep(const std::string& input) {
    const uint64_t length = std::min<uint64_t>(input.size(), kBytes - sizeof(uint64_t));
    std::memcpy(bytes_, &length, sizeof(length));
    std::memcpy(bytes_ + sizeof(length), input.data(), length);
  }

 private:
  static constexpr size_t kBytes = size_t{1} << 20;
  std::string path_;
  char* bytes_ = nullptr;
};

}  // namespace

std::vector<std::string> corpus(const std::string& beginning) {
  std::vector<std::string> paths, texts;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(PTQ_SOURCE_DIR) + "/tests/fuzz/corpus"))
    if (entry.path().filename().string().starts_with(beginning + ".")) paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) texts.push_back(read_file(path));
  return texts;
}

void fuzz(const std::string& reader, const std::function<std::string()>& next, const std::function<void(const std::string&)>& read) {
  // A pickle's worst opcode makes a node of 16 bytes of one byte, in arrays that are twice as long while they grow.
  constexpr size_t kMemoryPerByte = 160, kFreeMemory = size_t{4} << 20;
  constexpr auto kMostTime = std::chrono::seconds(5);
  constexpr unsigned kHangSeconds = 60;
  const char* const set = std::getenv("PTQ_FUZZ_SECONDS");
  const auto stop = Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * (set ? std::atof(set) : 20.0)));
  KeptInput kept(reader);
  int64_t sound = 0, refused = 0;
  while (Clock::now() < stop && !::testing::Test::HasFailure()) {
    const std::string input = next();
    kept.keep(input);
    ::alarm(kHangSeconds);  // ends the program, which fails the test
    const auto begun = Clock::now();
    restart_peak_memory();
    try {
      read(input);
      ++sound;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.report();
      ++refused;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "not one of the project's errors: " << error.what();
    }
    EXPECT_LE(peak_memory(), kFreeMemory + kMemoryPerByte * input.size()) << "bytes of memory for " << input.size() << " of input";
    EXPECT_LT(Clock::now() - begun, kMostTime);
  }
  ::alarm(0);
  EXPECT_GT(sound, 0) << "no change left a file sound: the fuzzer is too blunt";
  EXPECT_GT(refused, 0);
  ::testing::Test::RecordProperty("sound", std::to_string(sound));
  ::testing::Test::RecordProperty("refused", std::to_string(refused));
  std::printf("%s: %lld read, %lld refused\n", reader.c_str(), static_cast<long long>(sound), static_cast<long long>(refused));
}

}  // namespace ptq::test
