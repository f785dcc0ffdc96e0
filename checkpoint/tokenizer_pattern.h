#pragma once
// Translates the regular expressions of tokenizer.json, which are written for Oniguruma, into PCRE2's dialect. Accepts the syntax whose
// meaning it can keep, and refuses the rest instead of matching something slightly different.

#include <string>
#include <string_view>

#include "checkpoint/tokenizer_json.h"

namespace ptq::checkpoint {

/// The PCRE2 pattern (for PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE) that means what `pattern` means. Throws a data Error naming the part.
std::string translate_pattern(std::string_view pattern, const TokenizerJson& part);

}  // namespace ptq::checkpoint
