#pragma once
// GPT-2's alphabet of 256 printable characters, one for each byte: what a byte-level vocabulary is written in.

#include <string>
#include <string_view>

namespace ptq::checkpoint {

/// Appends one character (UTF-8) for each byte.
void append_byte_alphabet(std::string_view bytes, std::string& out);

}  // namespace ptq::checkpoint
