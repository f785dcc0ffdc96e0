// Damaged headers by the thousand, from a fixed seed: each is read or refused, and none crashes or asks for memory beyond the file's size.

#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "checkpoint/files.h"
#include "checkpoint/safetensors.h"
#include "tests/support/make_safetensors.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::entry;
using test::object;
using test::safetensors_bytes;

std::string sound_file() {
  return safetensors_bytes(
      object({R"("__metadata__":{"format":"pt"})", entry("model.embed.weight", "BF16", "[4,3]", 0, 24), entry("scale", "F32", "[]", 24, 28),
              entry("none", "U8", "[0,4]", 28, 28), entry("codes", "U8", "[2,2,1]", 28, 32)}),
      std::string(32, 'x'));
}

std::string mutate(std::string bytes, std::mt19937& random) {
  static const std::vector<std::string> kPieces = {"{",
                                                   "}",
                                                   "[",
                                                   "]",
                                                   "\"",
                                                   ",",
                                                   ":",
                                                   "0",
                                                   "-1",
                                                   "9223372036854775807",
                                                   "1e99",
                                                   "9",
                                                   " ",
                                                   "\\",
                                                   "\\u0000",
                                                   "null",
                                                   std::string(1, '\0'),
                                                   "\xff",
                                                   "[[[[",
                                                   "\"shape\":"};
  const auto below = [&](size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random); };
  for (size_t changes = 1 + below(3); changes > 0 && !bytes.empty(); --changes) {
    const size_t at = below(bytes.size());
    switch (below(5)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes.resize(at);
        break;
      case 2:
        bytes.insert(at, kPieces[below(kPieces.size())]);
        break;
      case 3:
        bytes.erase(at, 1 + below(20));
        break;
      default:
        bytes.insert(at, bytes.substr(below(bytes.size()), below(60)));
        break;
    }
  }
  // Half of the time with the length that fits again: otherwise most changes end at the length check.
  if (bytes.size() > 40 && below(2) == 0)
    return safetensors_bytes(bytes.size() - 40, bytes.substr(8, bytes.size() - 40), bytes.substr(bytes.size() - 32));
  return bytes;
}

TEST(SafetensorsFuzz, DamagedHeadersAreReadOrRefusedButNeverCrash) {
  const test::TemporaryFolder folder;
  const std::string sound = sound_file();
  std::mt19937 random(20240607);
  int read = 0, refused = 0;
  const auto stop = std::chrono::steady_clock::now() + std::chrono::seconds(2);

  for (int i = 0; i < 20'000 && std::chrono::steady_clock::now() < stop; ++i) {
    const std::string path = folder.write("fuzz.safetensors", mutate(sound, random));
    try {
      const SafetensorsHeader header = read_safetensors_header(path);
      int64_t bytes = header.data_begin;
      for (const TensorEntry& tensor : header.tensors) bytes += tensor.bytes;
      EXPECT_EQ(bytes, header.file_bytes);
      ++read;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.report();
      ++refused;
    }
  }

  EXPECT_GT(refused, 100);
  EXPECT_GT(read, 0) << "no mutation left the header sound: the fuzzer is too blunt";
}

TEST(SafetensorsFuzz, EveryTruncationOfAFileIsRefused) {
  const test::TemporaryFolder folder;
  const std::string sound = sound_file();

  for (size_t bytes = 0; bytes < sound.size(); ++bytes) {
    const std::string path = folder.write("cut.safetensors", sound.substr(0, bytes));
    EXPECT_THROW(read_safetensors_header(path), Error) << bytes;
  }
}

}  // namespace
}  // namespace ptq::checkpoint
