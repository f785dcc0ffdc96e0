#pragma once
// The "model" of tokenizer.json, byte pair encoding: vocabulary, what becomes of characters it lacks, merges. Immutable.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/tokenizer_json.h"
#include "checkpoint/tokenizer_merges.h"

namespace ptq::checkpoint {

class TokenizerBpe {
 public:
  /// Throws a data Error naming the part for another model, dropout, subword prefixes or suffixes, and merges of tokens that are not in
  /// the vocabulary.
  static TokenizerBpe parse(const TokenizerJson& part);

  /// Appends the ids of one piece of valid UTF-8. Throws a data Error for an unknown character when unk_token itself is unknown.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  std::optional<int32_t> find(std::string_view token) const;
  int32_t highest_id() const { return highest_id_; }  ///< -1 for an empty vocabulary

 private:
  /// Lets the map be asked for a string_view.
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  void parse_vocabulary(const TokenizerJson& part);
  void parse_merges(const TokenizerJson& part);
  int32_t id_of_character(uint32_t character, std::string_view text) const;
  void append_characters(std::string_view piece, std::vector<int32_t>& symbols) const;
  bool append_bytes(std::string_view character, std::vector<int32_t>& symbols) const;

  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> vocabulary_;
  std::vector<int32_t> basic_plane_;     ///< id of each one-character token below U+10000, or -1
  std::array<int32_t, 256> byte_ids_{};  ///< of <0x00> ... <0xFF>, or -1
  TokenizerMerges merges_;
  std::optional<std::string> unknown_token_;
  int32_t unknown_id_ = -1;
  int32_t highest_id_ = -1;
  bool has_byte_fallback_ = false, fuses_unknown_ = false, ignores_merges_ = false;
};

}  // namespace ptq::checkpoint
