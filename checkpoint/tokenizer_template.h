#pragma once
// The "post_processor" of tokenizer.json: the special tokens (BOS, prefixes) put around a text's ids. Immutable.

#include <cstdint>
#include <vector>

#include "checkpoint/tokenizer_json.h"

namespace ptq::checkpoint {

class TokenizerTemplate {
 public:
  /// From null, TemplateProcessing, ByteLevel (which moves offsets only) or a Sequence of them. Throws a data Error for any other.
  static TokenizerTemplate parse(const TokenizerJson& part);

  /// Puts the special tokens around ids.
  void apply(std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    bool is_text;
    std::vector<int32_t> ids;  ///< of a special token
  };
  void parse_part(const TokenizerJson& part, int depth);

  std::vector<std::vector<Slot>> templates_;  ///< each is given what the one before it made
};

}  // namespace ptq::checkpoint
