#include "checkpoint/tokenizer_normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "checkpoint/tokenizer_regex.h"
#include "checkpoint/tokenizer_unicode.h"

namespace ptq::checkpoint {

namespace {

/// NFC or NFKC.
class Compose : public NormalizerStep {
 public:
  explicit Compose(bool is_compatibility) : is_compatibility_(is_compatibility) {}

  void apply(NormalizedText& piece) const override {
    // Nothing below these takes part in composition: U+0300 (lead byte 0xCC) is the first mark, U+00A0 the first compatibility character.
    const uint8_t first_affected = is_compatibility_ ? 0x80 : 0xCC;
    if (std::none_of(piece.text.begin(), piece.text.end(), [&](char c) { return static_cast<uint8_t>(c) >= first_affected; })) return;
    const int options = UTF8PROC_STABLE | UTF8PROC_COMPOSE | (is_compatibility_ ? UTF8PROC_COMPAT : 0);
    utf8proc_uint8_t* composed = nullptr;
    const auto bytes = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(piece.text.data()),
                                    static_cast<utf8proc_ssize_t>(piece.text.size()), &composed, static_cast<utf8proc_option_t>(options));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, &std::free);
    if (bytes < 0) throw system_error(std::string("utf8proc_map: ") + utf8proc_errmsg(bytes));
    piece.text.assign(reinterpret_cast<const char*>(composed), static_cast<size_t>(bytes));
  }

 private:
  bool is_compatibility_;
};

class Prepend : public NormalizerStep {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(NormalizedText& piece) const override {
    if (!piece.text.empty()) piece.text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Replace : public NormalizerStep {
 public:
  Replace(TokenizerRegex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void apply(NormalizedText& piece) const override {
    std::vector<TokenizerRegex::Match> matches;
    pattern_.find_all(piece.text, matches);
    if (matches.empty()) return;
    std::string replaced;
    replaced.reserve(piece.text.size() + matches.size() * content_.size());
    size_t done = 0;
    for (const auto& match : matches) {
      // Hugging Face's library inserts there differently at the start of a text: not a rule to follow.
      if (match.begin == match.end) throw data_error("a Replace normalizer of tokenizer.json matches the empty text between characters");
      replaced.append(piece.text, done, match.begin - done);
      replaced += content_;
      done = match.end;
    }
    replaced.append(piece.text, done);
    piece.text = std::move(replaced);
  }

 private:
  TokenizerRegex pattern_;
  std::string content_;
};

class Strip : public NormalizerStep {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}

  void apply(NormalizedText& piece) const override {
    size_t begin = 0, end = piece.text.size();
    while (left_ && begin < end) {
      size_t next = begin;
      if (!is_white_space(next_character(piece.text, next))) break;
      begin = next;
    }
    while (right_ && end > begin) {
      size_t previous = end;
      if (!is_white_space(previous_character(piece.text, previous))) break;
      end = previous;
    }
    if (begin > 0) piece.is_text_start = false;
    piece.text = piece.text.substr(begin, end - begin);
  }

 private:
  bool left_, right_;
};

class Lowercase : public NormalizerStep {
 public:
  void apply(NormalizedText& piece) const override {
    std::string lowered;
    lowered.reserve(piece.text.size());
    for (size_t at = 0; at < piece.text.size();) {
      const uint32_t character = next_character(piece.text, at);
      // The only character whose lower case is two: I with dot above.
      if (character == 0x130)
        lowered += "i\u0307";
      else
        append_utf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character))), lowered);
    }
    piece.text = std::move(lowered);
  }
};

void parse_steps(const TokenizerJson& part, int depth, std::vector<std::unique_ptr<NormalizerStep>>& steps) {
  // Real files nest once; a damaged one must not exhaust the stack.
  if (depth > 16) throw part.error("sequences nested too deep");
  const std::string type = part["type"].string();
  if (type == "Sequence") {
    part.allow_keys({"normalizers"});
    for (const auto& step : part["normalizers"].items()) parse_steps(step, depth + 1, steps);
  } else if (type == "NFC" || type == "NFKC") {
    part.allow_keys({});
    steps.push_back(std::make_unique<Compose>(type == "NFKC"));
  } else if (type == "Prepend") {
    part.allow_keys({"prepend"});
    steps.push_back(std::make_unique<Prepend>(part["prepend"].string()));
  } else if (type == "Replace") {
    part.allow_keys({"pattern", "content"});
    steps.push_back(std::make_unique<Replace>(TokenizerRegex::parse(part["pattern"]), part["content"].string()));
  } else if (type == "Strip") {
    part.allow_keys({"strip_left", "strip_right"});
    steps.push_back(std::make_unique<Strip>(part["strip_left"].boolean(), part["strip_right"].boolean()));
  } else if (type == "Lowercase") {
    part.allow_keys({});
    steps.push_back(std::make_unique<Lowercase>());
  } else {
    throw part["type"].error("unknown normalizer '" + type + "'");
  }
}

}  // namespace

TokenizerNormalizer TokenizerNormalizer::parse(const TokenizerJson& part) {
  TokenizerNormalizer normalizer;
  if (!part.is_null()) parse_steps(part, 0, normalizer.steps_);
  return normalizer;
}

void TokenizerNormalizer::apply(NormalizedText& piece) const {
  for (const auto& step : steps_) step->apply(piece);
}

}  // namespace ptq::checkpoint
