#include "checkpoint/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <limits>

#include "checkpoint/tokenizer_pattern.h"
#include "checkpoint/tokenizer_unicode.h"
#include "kernels/core/unique_handle.h"

namespace ptq::checkpoint {

namespace {

struct CodeTraits {
  using type = pcre2_code*;
  static type empty() { return nullptr; }
  static void close(type code) { pcre2_code_free(code); }
};
struct MatchDataTraits {
  using type = pcre2_match_data*;
  static type empty() { return nullptr; }
  static void close(type data) { pcre2_match_data_free(data); }
};
struct MatchContextTraits {
  using type = pcre2_match_context*;
  static type empty() { return nullptr; }
  static void close(type context) { pcre2_match_context_free(context); }
};
struct JitStackTraits {
  using type = pcre2_jit_stack*;
  static type empty() { return nullptr; }
  static void close(type stack) { pcre2_jit_stack_free(stack); }
};

std::string pcre_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

/// What a match writes to. One for each thread, whatever the pattern: only the whole match's offsets are asked for.
struct Scratch {
  UniqueHandle<MatchDataTraits> data{pcre2_match_data_create(1, nullptr)};
  UniqueHandle<MatchContextTraits> context{pcre2_match_context_create(nullptr)};
  // A repeated group takes stack for each repetition: a long run of one kind of character needs more than the default 32 KiB.
  UniqueHandle<JitStackTraits> stack{pcre2_jit_stack_create(32 * 1024, 256 * 1024 * 1024, nullptr)};

  Scratch() {
    if (!data || !context || !stack) throw system_error("no memory to match regular expressions");
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    // Long runs of spaces backtrack as often as they are long; that is no runaway pattern.
    pcre2_set_match_limit(context.get(), std::numeric_limits<uint32_t>::max());
  }
};

}  // namespace

struct TokenizerRegex::Compiled {
  UniqueHandle<CodeTraits> code;
  std::string pattern;
  std::string literal;  ///< what to look for where the pattern is a plain string
};

TokenizerRegex TokenizerRegex::compile(std::string_view pattern, const TokenizerJson& part) {
  const std::string translated = translate_pattern(pattern, part);
  int error = 0;
  PCRE2_SIZE position = 0;
  auto compiled = std::make_shared<Compiled>();
  compiled->pattern = pattern;
  // In Oniguruma ^ and $ match at every line.
  compiled->code = UniqueHandle<CodeTraits>(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &position, nullptr));
  if (!compiled->code) throw part.error("regular expression: " + pcre_message(error));
  // Where the processor or its policy allows no JIT, the interpreter finds the same matches.
  pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE);
  return TokenizerRegex(std::move(compiled));
}

TokenizerRegex TokenizerRegex::parse(const TokenizerJson& part) {
  part.allow_keys({"String", "Regex"});
  const TokenizerJson literal = part["String"], regex = part["Regex"];
  if (literal.is_null() == regex.is_null()) throw part.error("expected a pattern: {\"String\": ...} or {\"Regex\": ...}");
  if (regex.is_null()) {
    auto compiled = std::make_shared<Compiled>();
    compiled->literal = literal.string();
    if (compiled->literal.empty()) throw literal.error("an empty pattern");
    return TokenizerRegex(std::move(compiled));
  }
  return compile(regex.string(), regex);
}

void TokenizerRegex::find_all(std::string_view text, std::vector<Match>& out) const {
  constexpr size_t kNone = std::string_view::npos;
  if (text.empty()) return;  // not even by a pattern that matches nothing at all
  if (!compiled_->code) {
    const std::string& literal = compiled_->literal;
    for (size_t at = text.find(literal); at != kNone; at = text.find(literal, at + literal.size()))
      out.push_back({at, at + literal.size()});
    return;
  }
  static thread_local Scratch scratch;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t last_end = kNone;
  for (size_t from = 0; from <= text.size();) {
    const int found =
        pcre2_match(compiled_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, scratch.data.get(), scratch.context.get());
    if (found == PCRE2_ERROR_NOMATCH) return;
    if (found < 0) throw data_error("regular expression: " + pcre_message(found), compiled_->pattern);
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch.data.get());
    const Match match = {offsets[0], offsets[1]};
    if (match.begin == match.end && match.end == last_end) {  // an empty match right behind the last one: step over a character
      if (from >= text.size()) return;
      next_character(text, from);
      continue;
    }
    out.push_back(match);
    from = last_end = match.end;
  }
}

}  // namespace ptq::checkpoint
