#pragma once
// The documents of one calibration file, one after another: lines of JSONL, a whole TXT file, rows of a safetensors tensor. Reads no more
// of a file than was asked for, and knows nothing of tokenizers.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ptq::checkpoint {

struct TextDocument {
  std::string text;          ///< valid UTF-8
  std::vector<int32_t> ids;  ///< instead of text
  bool is_ids = false;
  std::string where;  ///< "file:line" or "file: row 3 of input_ids", for messages
};

class TextDocuments {
 public:
  virtual ~TextDocuments() = default;
  /// Reads the next document; false after the last one. Throws a user Error with file and line for what is not as it should be.
  virtual bool next(TextDocument& document) = 0;
};

/// Opens a file by its extension: .jsonl, .txt, .safetensors. Throws a user Error for another one or a file that cannot be read.
std::unique_ptr<TextDocuments> open_documents(const std::string& path);

}  // namespace ptq::checkpoint
