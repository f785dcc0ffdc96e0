#pragma once
// A pattern of tokenizer.json, a string or a regular expression, compiled by PCRE2 with its JIT. Immutable: threads share it.
//
// Known gap: Hugging Face's tokenizers matches with Unicode 16 tables, PCRE2 10.42 has those of Unicode 14. Characters assigned since
// (about 9,300 letters, mostly rare scripts) are no letters, digits or signs here, so text with them may be cut elsewhere.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tokenizer_json.h"

namespace ptq::checkpoint {

class TokenizerRegex {
 public:
  struct Match {
    size_t begin, end;
  };

  /// From {"String": ...} or {"Regex": ...}. Throws a data Error naming the part for a pattern that cannot be kept exactly.
  static TokenizerRegex parse(const TokenizerJson& part);
  /// From a regular expression as the files have them; `part` is who errors are about.
  static TokenizerRegex compile(std::string_view pattern, const TokenizerJson& part);

  /// Appends all matches in valid UTF-8, left to right, without overlap; an empty match only where no match ended, none in empty text.
  void find_all(std::string_view text, std::vector<Match>& out) const;

 private:
  struct Compiled;
  explicit TokenizerRegex(std::shared_ptr<const Compiled> compiled) : compiled_(std::move(compiled)) {}
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace ptq::checkpoint
