#pragma once
// Calibration and evaluation data: JSONL, TXT and safetensors files to rows of token ids, the same on every rank and thread count.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/tokenizer.h"

namespace ptq::checkpoint {

struct TextRequest {
  std::vector<std::string> files;  ///< .jsonl {"text"} | {"input_ids"}, .txt (one document), .safetensors with input_ids [B, T]
  int64_t samples = 512;           ///< rows wanted; 0: all there are
  int64_t sequence_length = 512;   ///< tokens of a row (pack) or at most (no pack)
  bool pack = true;                ///< join documents by EOS in file order and cut full rows; else one document a row, cut at the length
  bool drop_short = false;         ///< without pack: skip documents of fewer than sequence_length tokens
  std::optional<int32_t> eos_id;   ///< needed by pack
  int64_t vocab_size = 0;          ///< ids at or above it are an error; 0: not checked
};

/// Rows of token ids, none empty. With pack the rows of safetensors data are documents too. `tokenizer` may be null when no file has text.
/// Tokenizes on the thread pool, only as many documents as the rows need. Throws user Errors with file and line: unreadable, empty,
/// not UTF-8, not JSON, a line without "text" or "input_ids", {"messages"} (not supported: chat templates), fewer rows than `samples`
/// (says how many there are), ids outside the vocabulary, text without a tokenizer, pack without an EOS id.
std::vector<std::vector<int32_t>> load_rows(const TextRequest& request, const Tokenizer* tokenizer);

}  // namespace ptq::checkpoint
