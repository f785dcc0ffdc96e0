#pragma once
// The "added_tokens" of tokenizer.json: strings that are one token wherever they stand in the text, found before BPE sees it. Immutable.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/tokenizer_json.h"

namespace ptq::checkpoint {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool is_single_word = false;  ///< only where neither neighbour is a word character
  bool strips_left = false;     ///< takes the white space before it along
  bool strips_right = false;    ///< takes the white space behind it along
  bool is_normalized = true;    ///< looked for after normalization, its own content normalized too
};

/// From the file's list; a missing one is empty.
std::vector<AddedToken> parse_added_tokens(const TokenizerJson& part);

/// Finds a set of added tokens in text.
class AddedTokenFinder {
 public:
  /// A part of a text: an added token's, or what lies between two of them.
  struct Part {
    size_t begin, end;
    int32_t id;  ///< -1: no added token
  };

  /// The content must not be empty. False where another id has the same content.
  [[nodiscard]] bool add(const AddedToken& token);

  /// Cuts valid UTF-8 into parts, in order, none without a token empty. Leftmost match first, the longest where several start.
  std::vector<Part> cut(std::string_view text) const;

 private:
  /// The longest token at text[at], or -1; sets its end.
  int longest_at(std::string_view text, size_t at, size_t& end) const;

  std::vector<AddedToken> tokens_;
  std::vector<int> token_of_node_;           ///< of the trie: index of the token that ends there, or -1
  std::unordered_map<uint64_t, int> child_;  ///< node << 8 | byte → node
  std::array<int, 256> first_{};             ///< node of a first byte, 0 for none: most bytes of a text start no token
};

}  // namespace ptq::checkpoint
