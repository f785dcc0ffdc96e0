#include "checkpoint/tokenizer_byte_alphabet.h"

#include <array>
#include <cstdint>

#include "checkpoint/tokenizer_unicode.h"

namespace ptq::checkpoint {

namespace {

/// Printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on, in order.
std::array<std::string, 256> make_alphabet() {
  std::array<std::string, 256> alphabet;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    append_utf8(is_printable ? byte : next++, alphabet[byte]);
  }
  return alphabet;
}

}  // namespace

void append_byte_alphabet(std::string_view bytes, std::string& out) {
  static const std::array<std::string, 256> alphabet = make_alphabet();
  for (const char byte : bytes) out += alphabet[static_cast<uint8_t>(byte)];
}

}  // namespace ptq::checkpoint
