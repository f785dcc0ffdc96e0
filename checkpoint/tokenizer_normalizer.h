#pragma once
// The "normalizer" of tokenizer.json: what is done to the characters of a piece of text before it is cut. Immutable.

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/tokenizer_json.h"

namespace ptq::checkpoint {

/// A piece of text on its way through the normalizer.
struct NormalizedText {
  std::string text;
  bool is_text_start = false;  ///< its first character is (or comes from) the first one of the whole text
};

class NormalizerStep {
 public:
  virtual ~NormalizerStep() = default;
  virtual void apply(NormalizedText& piece) const = 0;
};

class TokenizerNormalizer {
 public:
  /// From null, a Sequence or one step: NFC, NFKC, Prepend, Replace, Strip, Lowercase. Throws a data Error for any other.
  static TokenizerNormalizer parse(const TokenizerJson& part);

  /// Overwrites the piece, which is valid UTF-8 and stays so.
  void apply(NormalizedText& piece) const;

 private:
  std::vector<std::unique_ptr<NormalizerStep>> steps_;
};

}  // namespace ptq::checkpoint
