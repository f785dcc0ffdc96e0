#include "checkpoint/tokenizer_pattern.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

namespace ptq::checkpoint {

namespace {

// Oniguruma's \s is White_Space; PCRE2's also has U+180E, which left that property long ago. So both are spelled out.
constexpr std::string_view kSpace = R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e})"
    R"(\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

constexpr std::array<std::string_view, 38> kCategories = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
                                                          "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
                                                          "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cs", "Co", "Cn", "Any"};

bool is_ascii_alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Translator {
 public:
  Translator(std::string_view pattern, const TokenizerJson& part) : part_(part), text_(pattern) {}

  std::string run() {
    while (at_ < text_.size()) {
      switch (text_[at_]) {
        case '\\':
          escape(/*in_class=*/false);
          break;
        case '[':
          character_class();
          break;
        case '(':
          group();
          break;
        case ')':
          if (ignores_case_.size() > 1) ignores_case_.pop_back();
          out_ += text_[at_++];
          break;
        case '{':
          quantifier();
          break;
        default:
          out_ += text_[at_++];
      }
    }
    return std::move(out_);
  }

 private:
  Error unknown(std::string_view what) const {
    return part_.error("the regular expression uses " + std::string(what) + ", which is not supported");
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  bool follows(std::string_view what) const { return text_.substr(at_).starts_with(what); }

  /// One escape; true where it stands for a set of characters.
  bool escape(bool in_class) {
    const char kind = peek(1);
    const auto set = [&](std::string_view inside) {
      if (!in_class) out_ += '[';
      out_ += inside;
      if (!in_class) out_ += ']';
      at_ += 2;
      return true;
    };
    switch (kind) {
      case 's':
        return set(kSpace);
      case 'S':
        return set(kNotSpace);
      case 'd':
        return set(R"(\p{Nd})");
      case 'D':
        return set(R"(\P{Nd})");
      case 'p':
      case 'P':
        property();
        return true;
      case 'r':
      case 'n':
      case 't':
      case 'f':
        out_ += text_.substr(at_, 2);
        at_ += 2;
        return false;
      case 'x':
      case 'u':
        code_point();
        return false;
      default:
        break;
    }
    // \w, \b, \h, \v and the rest mean other things in the two dialects.
    const bool is_sign = kind > ' ' && kind < 0x7F && !is_ascii_alphanumeric(kind);
    if (!is_sign && kind != ' ') throw unknown(kind == '\0' ? "a \\ at its end" : "\\" + std::string(1, kind));
    out_ += '\\';
    out_ += kind;
    at_ += 2;
    return false;
  }

  /// \p{Name}: a general category, else a script. A bare script name means Script_Extensions to PCRE2 and Script to Oniguruma.
  void property() {
    const size_t close = text_.find('}', at_);
    if (peek(2) != '{' || close == std::string_view::npos) throw unknown("\\p without braces");
    std::string_view name = text_.substr(at_ + 3, close - at_ - 3);
    const bool is_negated = (peek(1) == 'P') != name.starts_with('^');
    if (name.starts_with('^')) name.remove_prefix(1);
    const bool is_category = std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end();
    // Letter case inside (?i: ) is folded by one library and not by the other.
    if (ignores_case_.back() && (name == "Lu" || name == "Ll" || name == "Lt")) throw unknown("\\p{" + std::string(name) + "} in (?i)");
    out_ += is_negated ? "\\P{" : "\\p{";
    if (!is_category) out_ += "sc:";
    out_ += name;
    out_ += '}';
    at_ = close + 1;
  }

  void code_point() {
    std::string_view digits;
    if (peek(1) == 'x' && peek(2) == '{') {
      const size_t close = text_.find('}', at_);
      if (close == std::string_view::npos) throw unknown("\\x{ without }");
      digits = text_.substr(at_ + 3, close - at_ - 3);
      at_ = close + 1;
    } else {
      digits = text_.substr(std::min(at_ + 2, text_.size()), peek(1) == 'x' ? 2 : 4);
      // Two digits are a byte to Oniguruma, not a character.
      if (peek(1) == 'x' && (digits.size() != 2 || digits[0] > '7')) throw unknown("a \\x escape that is not ASCII");
      if (peek(1) == 'u' && digits.size() != 4) throw unknown("a short \\u escape");
      at_ += 2 + digits.size();
    }
    if (digits.empty() || !std::all_of(digits.begin(), digits.end(), is_hex)) throw unknown("a malformed code point");
    out_ += "\\x{";
    out_ += digits;
    out_ += '}';
  }

  void character_class() {
    out_ += text_[at_++];
    if (peek() == '^') out_ += text_[at_++];
    bool is_after_set = false;
    for (bool is_first = true;; is_first = false) {
      if (at_ >= text_.size()) throw unknown("[ without ]");
      const char c = peek();
      if (c == ']' && !is_first) break;
      if (c == ']') throw unknown("an empty [] class");
      if (c == '[') throw unknown("a class inside a class");
      if (follows("&&")) throw unknown("an intersection of classes (&&)");
      if (c == '\\') {
        is_after_set = escape(/*in_class=*/true);
        continue;
      }
      // Next to a set a hyphen is itself; spelled out, the set's last range must not swallow it.
      const bool is_before_set = peek(1) == '\\' && std::string_view("sSdDpP").find(peek(2)) != std::string_view::npos;
      if (c == '-' && (is_after_set || is_before_set)) out_ += '\\';
      out_ += c;
      ++at_;
      is_after_set = false;
    }
    out_ += text_[at_++];
  }

  void group() {
    bool ignores_case = ignores_case_.back();
    std::string_view opening = "(";
    if (peek(1) == '*') throw unknown("a (* verb");
    if (peek(1) == '?') {
      opening = "";
      for (const std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"})
        if (follows(known)) opening = known;
      // An option without its own group reaches as far in both dialects only where nothing stands before it.
      if (at_ == 0 && follows("(?i)")) {
        ignores_case_.back() = true;
        out_ += "(?i)";
        at_ += 4;
        return;
      }
      if (opening.empty()) throw unknown("the group '" + std::string(text_.substr(at_, 4)) + "'");
      if (opening == "(?i:") ignores_case = true;
      if (opening == "(?-i:") ignores_case = false;
    }
    ignores_case_.push_back(ignores_case);
    out_ += opening;
    at_ += opening.size();
  }

  /// {n}, {n,}, {n,m} and their lazy forms. A + behind them is possessive in one dialect and a second repetition in the other.
  void quantifier() {
    size_t end = at_ + 1;
    const size_t digits = end;
    while (end < text_.size() && text_[end] >= '0' && text_[end] <= '9') ++end;
    bool is_range = false;
    if (end > digits && end < text_.size() && text_[end] == ',') {
      is_range = true;
      ++end;
      while (end < text_.size() && text_[end] >= '0' && text_[end] <= '9') ++end;
    }
    if (end == digits || end >= text_.size() || text_[end] != '}') throw unknown("a { that is no repetition");
    out_ += text_.substr(at_, end + 1 - at_);
    at_ = end + 1;
    if (peek() == '+' || (peek() == '?' && !is_range)) throw unknown("a repetition of a {} repetition");
  }

  const TokenizerJson& part_;
  std::string_view text_;
  size_t at_ = 0;
  std::string out_;
  std::vector<bool> ignores_case_ = {false};
};

}  // namespace

std::string translate_pattern(std::string_view pattern, const TokenizerJson& part) { return Translator(pattern, part).run(); }

}  // namespace ptq::checkpoint
