#include "checkpoint/tokenizer_pretokenizer.h"

#include <algorithm>
#include <optional>

#include "checkpoint/tokenizer_byte_alphabet.h"
#include "checkpoint/tokenizer_delimiter.h"
#include "checkpoint/tokenizer_regex.h"
#include "checkpoint/tokenizer_unicode.h"

namespace ptq::checkpoint {

namespace {

/// What ByteLevel's use_regex stands for: GPT-2's pattern, which the files do not spell out.
constexpr std::string_view kGpt2Words = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Cuts every piece at what find(piece's text, matches) finds.
template <class Find>
void cut_all(TextPieces& text, DelimiterBehavior behavior, bool is_inverted, const Find& find) {
  std::vector<TextPieces::Piece> cut;
  cut.reserve(text.pieces.size());
  std::vector<TokenizerRegex::Match> matches;
  for (const auto& piece : text.pieces) {
    matches.clear();
    find(text.view(piece), matches);
    cut_piece(piece, matches, behavior, is_inverted, cut);
  }
  text.pieces = std::move(cut);
}

/// Replaces the text: rewrite(piece, its old text, new text) appends a piece's new characters.
template <class Rewrite>
void rewrite_all(TextPieces& text, const Rewrite& rewrite) {
  std::string rewritten;
  rewritten.reserve(text.text.size() + text.text.size() / 4);
  for (auto& piece : text.pieces) {
    const size_t begin = rewritten.size();
    rewrite(piece, text.view(piece), rewritten);
    piece.begin = begin;
    piece.end = rewritten.size();
  }
  text.text = std::move(rewritten);
}

class Split : public PreTokenizerStep {
 public:
  Split(TokenizerRegex pattern, DelimiterBehavior behavior, bool is_inverted)
      : pattern_(std::move(pattern)), behavior_(behavior), is_inverted_(is_inverted) {}
  void apply(TextPieces& text) const override {
    cut_all(text, behavior_, is_inverted_, [&](std::string_view piece, auto& matches) { pattern_.find_all(piece, matches); });
  }

 private:
  TokenizerRegex pattern_;
  DelimiterBehavior behavior_;
  bool is_inverted_;
};

/// Cuts at every character of a class (Digits, Punctuation).
class SplitCharacters : public PreTokenizerStep {
 public:
  SplitCharacters(bool (*is_delimiter)(uint32_t), DelimiterBehavior behavior) : is_delimiter_(is_delimiter), behavior_(behavior) {}
  void apply(TextPieces& text) const override {
    cut_all(text, behavior_, /*is_inverted=*/false, [&](std::string_view piece, auto& matches) {
      for (size_t at = 0; at < piece.size();) {
        const size_t begin = at;
        if (is_delimiter_(next_character(piece, at))) matches.push_back({begin, at});
      }
    });
  }

 private:
  bool (*is_delimiter_)(uint32_t);
  DelimiterBehavior behavior_;
};

/// Bytes become printable characters, so that BPE never meets an unknown one.
class ByteLevel : public PreTokenizerStep {
 public:
  bool inserts_characters() const override { return true; }
  ByteLevel(bool adds_prefix_space, std::optional<TokenizerRegex> words)
      : adds_prefix_space_(adds_prefix_space), words_(std::move(words)) {}

  void apply(TextPieces& text) const override {
    if (adds_prefix_space_) {
      rewrite_all(text, [](const auto&, std::string_view piece, std::string& out) {
        if (!piece.starts_with(' ')) out += ' ';
        out += piece;
      });
    }
    if (words_) {
      cut_all(text, DelimiterBehavior::kIsolated, /*is_inverted=*/false,
              [&](std::string_view piece, auto& matches) { words_->find_all(piece, matches); });
    }
    rewrite_all(text, [](const auto&, std::string_view piece, std::string& out) { append_byte_alphabet(piece, out); });
  }

 private:
  bool adds_prefix_space_;
  std::optional<TokenizerRegex> words_;
};

/// SentencePiece's visible space.
class Metaspace : public PreTokenizerStep {
 public:
  enum class Prepend { kAlways, kFirst, kNever };
  bool inserts_characters() const override { return true; }
  Metaspace(std::string replacement, Prepend prepend, bool splits)
      : replacement_(std::move(replacement)), prepend_(prepend), splits_(splits) {}

  void apply(TextPieces& text) const override {
    rewrite_all(text, [&](const TextPieces::Piece& piece, std::string_view old_text, std::string& out) {
      const bool is_wanted = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.is_text_start);
      if (is_wanted && !old_text.starts_with(' ') && !old_text.starts_with(replacement_)) out += replacement_;
      for (const char c : old_text) {
        if (c == ' ')
          out += replacement_;
        else
          out += c;
      }
    });
    if (!splits_) return;
    cut_all(text, DelimiterBehavior::kMergedWithNext, /*is_inverted=*/false, [&](std::string_view piece, auto& matches) {
      for (size_t at = piece.find(replacement_); at != std::string_view::npos; at = piece.find(replacement_, at + replacement_.size()))
        matches.push_back({at, at + replacement_.size()});
    });
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool splits_;
};

std::unique_ptr<PreTokenizerStep> parse_metaspace(const TokenizerJson& part) {
  part.allow_keys({"replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
  const std::string replacement = part["replacement"].string();
  size_t after_first = 0;
  if (!replacement.empty()) next_character(replacement, after_first);
  if (replacement.empty() || after_first != replacement.size()) throw part["replacement"].error("expected one character");

  // Files from before prepend_scheme have add_prefix_space alone; newer ones may have both, and then they must agree.
  const bool adds_prefix = part["add_prefix_space"].boolean_or(true);
  auto prepend = adds_prefix ? Metaspace::Prepend::kAlways : Metaspace::Prepend::kNever;
  if (const TokenizerJson scheme = part["prepend_scheme"]; !scheme.is_null()) {
    const std::string name = scheme.string();
    if (name == "always")
      prepend = Metaspace::Prepend::kAlways;
    else if (name == "first")
      prepend = Metaspace::Prepend::kFirst;
    else if (name == "never")
      prepend = Metaspace::Prepend::kNever;
    else
      throw scheme.error("unknown prepend scheme '" + name + "'");
    if (!adds_prefix && prepend != Metaspace::Prepend::kNever) throw scheme.error("contradicts add_prefix_space false");
  }
  return std::make_unique<Metaspace>(replacement, prepend, part["split"].boolean_or(true));
}

void parse_steps(const TokenizerJson& part, int depth, std::vector<std::unique_ptr<PreTokenizerStep>>& steps) {
  // Real files nest once; a damaged one must not exhaust the stack.
  if (depth > 16) throw part.error("sequences nested too deep");
  const std::string type = part["type"].string();
  if (type == "Sequence") {
    part.allow_keys({"pretokenizers"});
    for (const auto& step : part["pretokenizers"].items()) parse_steps(step, depth + 1, steps);
  } else if (type == "Split") {
    part.allow_keys({"pattern", "behavior", "invert"});
    steps.push_back(std::make_unique<Split>(TokenizerRegex::parse(part["pattern"]), parse_behavior(part["behavior"]),
                                            part["invert"].boolean_or(false)));
  } else if (type == "ByteLevel") {
    part.allow_keys({"add_prefix_space", "trim_offsets", "use_regex"});
    std::optional<TokenizerRegex> words;
    if (part["use_regex"].boolean_or(true)) words = TokenizerRegex::compile(kGpt2Words, part);
    steps.push_back(std::make_unique<ByteLevel>(part["add_prefix_space"].boolean_or(true), std::move(words)));
  } else if (type == "Metaspace") {
    // "first" asks for the piece at the start of the original text; once characters were put in, several pieces may come from there.
    // (Left over: a normalizer that makes several characters of the first one, which an earlier step then cuts apart.)
    const bool is_first = part["prepend_scheme"].value() == "first";
    if (is_first && std::any_of(steps.begin(), steps.end(), [](const auto& step) { return step->inserts_characters(); }))
      throw part["prepend_scheme"].error("the scheme 'first' is not supported after ByteLevel or another Metaspace");
    steps.push_back(parse_metaspace(part));
  } else if (type == "Digits") {
    part.allow_keys({"individual_digits"});
    const bool is_each_alone = part["individual_digits"].boolean_or(false);
    steps.push_back(
        std::make_unique<SplitCharacters>(is_numeric, is_each_alone ? DelimiterBehavior::kIsolated : DelimiterBehavior::kContiguous));
  } else if (type == "Punctuation") {
    part.allow_keys({"behavior"});
    const TokenizerJson behavior = part["behavior"];
    steps.push_back(
        std::make_unique<SplitCharacters>(is_punctuation, behavior.is_null() ? DelimiterBehavior::kIsolated : parse_behavior(behavior)));
  } else {
    throw part["type"].error("unknown pre-tokenizer '" + type + "'");
  }
}

}  // namespace

PreTokenizer PreTokenizer::parse(const TokenizerJson& part) {
  PreTokenizer pre_tokenizer;
  if (!part.is_null()) parse_steps(part, 0, pre_tokenizer.steps_);
  return pre_tokenizer;
}

void PreTokenizer::apply(TextPieces& text) const {
  for (const auto& step : steps_) step->apply(text);
}

}  // namespace ptq::checkpoint
