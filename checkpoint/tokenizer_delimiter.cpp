#include "checkpoint/tokenizer_delimiter.h"

#include <algorithm>

namespace ptq::checkpoint {

namespace {

struct Part {
  size_t begin, end;  ///< inside the piece
  bool is_delimiter;
};

/// Delimiters and what lies between them, in order.
void list_parts(size_t bytes, const std::vector<TokenizerRegex::Match>& delimiters, bool is_inverted, std::vector<Part>& parts) {
  parts.clear();
  size_t done = 0;
  for (const auto& delimiter : delimiters) {
    if (done != delimiter.begin) parts.push_back({done, delimiter.begin, is_inverted});
    parts.push_back({delimiter.begin, delimiter.end, !is_inverted});
    done = delimiter.end;
  }
  if (done != bytes) parts.push_back({done, bytes, is_inverted});
}

/// Joins each part to the one before it where joins(part, previous part's is_delimiter) says so. At the start nothing was a delimiter.
template <class Joins>
void join(std::vector<Part>& parts, const Joins& joins) {
  size_t kept = 0;
  bool was_delimiter = false;
  for (const Part& part : parts) {
    const Part current = part;  // the slot written below may be this very one
    if (kept > 0 && joins(current.is_delimiter, was_delimiter)) {
      parts[kept - 1].begin = std::min(parts[kept - 1].begin, current.begin);
      parts[kept - 1].end = std::max(parts[kept - 1].end, current.end);
    } else {
      parts[kept++] = current;
    }
    was_delimiter = current.is_delimiter;
  }
  parts.resize(kept);
}

}  // namespace

DelimiterBehavior parse_behavior(const TokenizerJson& part) {
  const std::string name = part.string();
  if (name == "Removed") return DelimiterBehavior::kRemoved;
  if (name == "Isolated") return DelimiterBehavior::kIsolated;
  if (name == "MergedWithPrevious") return DelimiterBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return DelimiterBehavior::kMergedWithNext;
  if (name == "Contiguous") return DelimiterBehavior::kContiguous;
  throw part.error("unknown split behavior '" + name + "'");
}

void cut_piece(const TextPieces::Piece& piece, const std::vector<TokenizerRegex::Match>& delimiters, DelimiterBehavior behavior,
               bool is_inverted, std::vector<TextPieces::Piece>& out) {
  static thread_local std::vector<Part> parts;
  list_parts(piece.end - piece.begin, delimiters, is_inverted, parts);
  // Two delimiters in a row: only the first joins its neighbour.
  const auto joins_alone = [](bool is_delimiter, bool was_delimiter) { return is_delimiter && !was_delimiter; };
  switch (behavior) {
    case DelimiterBehavior::kIsolated:
      break;
    case DelimiterBehavior::kRemoved:
      std::erase_if(parts, [](const Part& part) { return part.is_delimiter; });
      break;
    case DelimiterBehavior::kContiguous:
      join(parts, [](bool is_delimiter, bool was_delimiter) { return is_delimiter == was_delimiter; });
      break;
    case DelimiterBehavior::kMergedWithPrevious:
      join(parts, joins_alone);
      break;
    case DelimiterBehavior::kMergedWithNext:
      std::reverse(parts.begin(), parts.end());
      join(parts, joins_alone);
      std::reverse(parts.begin(), parts.end());
      break;
  }
  for (const Part& part : parts)
    if (part.begin != part.end) out.push_back({piece.begin + part.begin, piece.begin + part.end, piece.is_text_start && part.begin == 0});
}

}  // namespace ptq::checkpoint
