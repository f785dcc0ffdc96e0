#pragma once
// What becomes of a piece of text and the delimiters found in it: the five split behaviours of Hugging Face's tokenizers.

#include <vector>

#include "checkpoint/tokenizer_json.h"
#include "checkpoint/tokenizer_pretokenizer.h"
#include "checkpoint/tokenizer_regex.h"

namespace ptq::checkpoint {

enum class DelimiterBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// From its name in the file. Throws a data Error for an unknown one.
DelimiterBehavior parse_behavior(const TokenizerJson& part);

/// Cuts one piece. `delimiters` are offsets inside the piece, ascending and disjoint; is_inverted makes what lies between them the
/// delimiters. Appends the pieces that are not empty.
void cut_piece(const TextPieces::Piece& piece, const std::vector<TokenizerRegex::Match>& delimiters, DelimiterBehavior behavior,
               bool is_inverted, std::vector<TextPieces::Piece>& out);

}  // namespace ptq::checkpoint
