#include "tests/fuzz/mutations.h"

#include <algorithm>

namespace ptq::test {

namespace {
constexpr size_t kMaxBytes = size_t{64} << 10;
}  // namespace

size_t Mutations::below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }

std::string Mutations::next() {
  std::string bytes = corpus_[below(corpus_.size())];
  for (size_t changes = 1 + below(6); changes > 0; --changes) change(bytes);
  if (bytes.size() > kMaxBytes) bytes.resize(kMaxBytes);
  return bytes;
}

void Mutations::change(std::string& bytes) {
  const size_t at = below(bytes.size()), rest = bytes.size() - at;
  switch (below(9)) {
    case 0:  // a bit
      if (rest > 0) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
      break;
    case 1:  // a byte
      if (rest > 0) bytes[at] = static_cast<char>(below(256));
      break;
    case 2:  // a number at the edge of its type, or near the length
      for (size_t i = 0, count = size_t{1} << below(4), kind = below(4); i < std::min(count, rest); ++i)
        bytes[at + i] = static_cast<char>(kind == 0   ? 0xff
                                          : kind == 1 ? 0
                                          : kind == 2 ? (i + 1 == count ? 0x7f : 0xff)
                                                      : bytes.size() >> (8 * i));
      break;
    case 3:  // shorter
      bytes.resize(at);
      break;
    case 4:
      bytes.erase(at, 1 + below(16));
      break;
    case 5:
      bytes.insert(at, 1 + below(4), static_cast<char>(below(256)));
      break;
    case 6: {  // a part of itself again
      const std::string part = bytes.substr(below(bytes.size()), 1 + below(200));
      bytes.insert(at, part);
      break;
    }
    case 7:  // one byte very often
      bytes.insert(at, below(5000), static_cast<char>(below(256)));
      break;
    default: {  // a part of another
      const std::string& other = corpus_[below(corpus_.size())];
      bytes.replace(at, std::min(rest, below(40)), other.substr(below(other.size()), 1 + below(60)));
      break;
    }
  }
}

}  // namespace ptq::test
