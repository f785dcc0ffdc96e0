#pragma once
// Text to token ids as Hugging Face's tokenizers do it, from tokenizer.json: byte-level and SentencePiece-style BPE. Immutable after
// open: any number of threads may encode at once.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ptq::checkpoint {

class Tokenizer {
 public:
  /// Reads `folder`/tokenizer.json. Throws a user Error when there is none (fix: pre-tokenized calibration data), a data Error naming the
  /// part (normalizer, pre_tokenizer, model ...) for anything this implementation does not know: never guesses.
  static Tokenizer open(const std::string& folder);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of UTF-8 `text`. add_special_tokens applies the post-processor's template (BOS ...). Throws a data Error for invalid UTF-8.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const;
  int64_t vocab_size() const;  ///< highest id + 1

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ptq::checkpoint
