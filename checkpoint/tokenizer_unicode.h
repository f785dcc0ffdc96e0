#pragma once
// UTF-8 and the few character classes the tokenizer's parts ask for. Tables are utf8proc's; what differs from newer Unicode versions is
// only the class of characters that were not assigned yet.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ptq::checkpoint {

/// Offset of the first byte that does not belong to well-formed UTF-8 (no surrogates, no overlong forms), or npos.
size_t find_invalid_utf8(std::string_view text);

/// The character of valid UTF-8 starting at text[at]; moves `at` behind it.
uint32_t next_character(std::string_view text, size_t& at);
/// The character of valid UTF-8 ending before text[at]; moves `at` to its start. at > 0.
uint32_t previous_character(std::string_view text, size_t& at);
void append_utf8(uint32_t character, std::string& out);

bool is_white_space(uint32_t character);  ///< Unicode White_Space
bool is_word(uint32_t character);         ///< Alphabetic, marks, decimal digits, connectors, joiners: \w of Unicode regexes
bool is_numeric(uint32_t character);      ///< Nd, Nl, No
bool is_punctuation(uint32_t character);  ///< P*, and every ASCII sign between the letters and digits

}  // namespace ptq::checkpoint
