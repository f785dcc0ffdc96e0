// Readers of untrusted bytes on damaged files, from a fixed seed: each file is read or refused with a data Error, in little time and with
// memory in proportion to it. $PTQ_FUZZ_SECONDS says how long each reader is tried (default 20). The file that was being read when a
// reader crashed lies in the build folder as fuzz-READER.input.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>

#include "checkpoint/chunk_grid.h"
#include "checkpoint/pickle.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_dist_metadata.h"
#include "checkpoint/torch_pickle.h"
#include "tests/fuzz/counted_memory.h"
#include "tests/fuzz/mutations.h"
#include "tests/support/make_torch_file.h"
#include "tests/support/model_files.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using Clock = std::chrono::steady_clock;

/// The corpus files whose names begin so, in the order of their names.
std::vector<std::string> corpus(const std::string& beginning) {
  std::vector<std::string> paths, texts;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(PTQ_SOURCE_DIR) + "/tests/fuzz/corpus"))
    if (entry.path().filename().string().starts_with(beginning + ".")) paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) texts.push_back(test::read_file(path));
  return texts;
}

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

/// Gives `read` inputs of `next` until the time is over. It returns normally or throws a data Error.
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
    test::restart_peak_memory();
    try {
      read(input);
      ++sound;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.report();
      ++refused;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "not one of the project's errors: " << error.what();
    }
    EXPECT_LE(test::peak_memory(), kFreeMemory + kMemoryPerByte * input.size()) << "bytes of memory for " << input.size() << " of input";
    EXPECT_LT(Clock::now() - begun, kMostTime);
  }
  ::alarm(0);
  EXPECT_GT(sound, 0) << "no change left a file sound: the fuzzer is too blunt";
  EXPECT_GT(refused, 0);
  ::testing::Test::RecordProperty("sound", std::to_string(sound));
  ::testing::Test::RecordProperty("refused", std::to_string(refused));
  std::printf("%s: %lld read, %lld refused\n", reader.c_str(), static_cast<long long>(sound), static_cast<long long>(refused));
}

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
