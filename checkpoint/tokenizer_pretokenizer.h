#pragma once
// The "pre_tokenizer" of tokenizer.json: cuts normalized text into the pieces inside which BPE may merge. Immutable.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tokenizer_json.h"

namespace ptq::checkpoint {

/// Text and the parts of it that are left: pieces in order, none empty, none overlapping.
struct TextPieces {
  struct Piece {
    size_t begin, end;
    bool is_text_start;  ///< its first character is (or comes from) the first one of the whole text
  };
  std::string text;
  std::vector<Piece> pieces;

  std::string_view view(const Piece& piece) const { return std::string_view(text).substr(piece.begin, piece.end - piece.begin); }
};

class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  virtual void apply(TextPieces& text) const = 0;
  /// Does more than cut.
  virtual bool inserts_characters() const { return false; }
};

class PreTokenizer {
 public:
  /// From null (text stays one piece), a Sequence or one step: Split, ByteLevel, Metaspace, Digits, Punctuation. Throws a data Error for
  /// any other.
  static PreTokenizer parse(const TokenizerJson& part);

  /// Cuts every piece, and rewrites the text where a step says so (ByteLevel, Metaspace).
  void apply(TextPieces& text) const;

 private:
  std::vector<std::unique_ptr<PreTokenizerStep>> steps_;
};

}  // namespace ptq::checkpoint
