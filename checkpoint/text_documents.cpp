#include "checkpoint/text_documents.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "checkpoint/safetensors.h"
#include "checkpoint/tokenizer_unicode.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

constexpr const char* kLineFormat = "give every line as {\"text\": \"...\"} or {\"input_ids\": [1, 2, ...]}";

std::ifstream open_stream(const std::string& path) {
  errno = 0;
  std::ifstream stream;
  // A folder opens like a file and then reads as an empty one.
  if (std::filesystem::is_directory(path)) throw user_error("this is a folder, not a file with calibration data", path);
  stream.open(path, std::ios::binary);
  if (!stream) throw user_error(std::string("cannot read the file: ") + std::strerror(errno ? errno : EIO), path, "check the path");
  return stream;
}

/// What a failing disk did not deliver must not pass for the end of the file.
void check_stream(const std::ifstream& stream, const std::string& path) {
  if (stream.bad()) throw errno_error("read", path, errno ? errno : EIO);
}

std::string line_of(const std::string& path, int64_t line) { return path + ":" + std::to_string(line); }

int32_t checked_id(int64_t id, const std::string& where) {
  if (id < 0 || id > std::numeric_limits<int32_t>::max())
    throw user_error("input_ids has " + std::to_string(id) + ", which is no token id", where, "give token ids of 0 and above");
  return static_cast<int32_t>(id);
}

class JsonLines : public TextDocuments {
 public:
  explicit JsonLines(const std::string& path) : path_(path), stream_(open_stream(path)) {}

  bool next(TextDocument& document) override {
    for (std::string text; std::getline(stream_, text);) {
      ++line_;
      if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
      has_documents_ = true;
      document = parse(text, line_of(path_, line_));
      return true;
    }
    check_stream(stream_, path_);
    if (!has_documents_) throw user_error("the file has no documents", path_, kLineFormat);
    return false;
  }

 private:
  static TextDocument parse(const std::string& text, const std::string& where) {
    if (find_invalid_utf8(text) != std::string::npos) throw user_error("the line is not UTF-8", where, "save the file as UTF-8");
    nlohmann::json line;
    try {
      line = nlohmann::json::parse(text);
    } catch (const nlohmann::json::exception& failure) {
      throw user_error(std::string("the line is not JSON: ") + failure.what(), where, kLineFormat);
    }
    if (!line.is_object()) throw user_error("the line is JSON, but not an object", where, kLineFormat);
    // Data that was tokenized often keeps its text: then the ids are what was meant.
    if (const auto ids = line.find("input_ids"); ids != line.end()) return from_ids(*ids, where);
    if (const auto content = line.find("text"); content != line.end()) {
      if (!content->is_string()) throw user_error("\"text\" is not a string", where, kLineFormat);
      return {content->get<std::string>(), {}, false, where};
    }
    if (line.contains("messages")) {
      throw user_error("chat messages are not supported yet", where,
                       "apply the model's chat template and give the result as \"text\" or \"input_ids\"");
    }
    throw user_error("the line has neither \"text\" nor \"input_ids\"", where, kLineFormat);
  }

  static TextDocument from_ids(const nlohmann::json& ids, const std::string& where) {
    if (!ids.is_array()) throw user_error("\"input_ids\" is not a list of token ids", where, kLineFormat);
    TextDocument document;
    document.is_ids = true;
    document.where = where;
    document.ids.reserve(ids.size());
    for (const auto& id : ids) {
      const bool is_huge = id.is_number_unsigned() && id.get<uint64_t>() > std::numeric_limits<int32_t>::max();
      if (!id.is_number_integer() || is_huge)
        throw user_error("\"input_ids\" has " + (id.is_number() ? id.dump() : id.type_name()) + ", which is no token id", where,
                         kLineFormat);
      document.ids.push_back(checked_id(id.get<int64_t>(), where));
    }
    return document;
  }

  std::string path_;
  std::ifstream stream_;
  int64_t line_ = 0;
  bool has_documents_ = false;
};

class WholeFile : public TextDocuments {
 public:
  explicit WholeFile(const std::string& path) : path_(path), stream_(open_stream(path)) {}

  bool next(TextDocument& document) override {
    if (is_done_) return false;
    is_done_ = true;
    document = {std::string(std::istreambuf_iterator<char>(stream_), {}), {}, false, path_};
    check_stream(stream_, path_);
    const std::string& text = document.text;
    if (text.empty()) throw user_error("the file is empty", path_, "give a file with text");
    if (const size_t at = find_invalid_utf8(text); at != std::string::npos) {
      const auto lines = std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
      throw user_error("the text is not UTF-8", line_of(path_, lines + 1), "save the file as UTF-8");
    }
    return true;
  }

 private:
  std::string path_;
  std::ifstream stream_;
  bool is_done_ = false;
};

/// input_ids [T] or [B, T] of I32 or I64.
class TensorRows : public TextDocuments {
 public:
  explicit TensorRows(const std::string& path) : path_(path), stream_(open_stream(path)) {
    const SafetensorsHeader header = read_safetensors_header(path);
    const auto found = std::find_if(header.tensors.begin(), header.tensors.end(), [](const auto& t) { return t.name == "input_ids"; });
    const char* fix = "save the token ids as a tensor input_ids of shape [rows, tokens], int32 or int64";
    if (found == header.tensors.end()) throw user_error("the file has no tensor input_ids", path, fix);
    entry_ = *found;
    if (entry_.dtype != DType::kI32 && entry_.dtype != DType::kI64)
      throw user_error("input_ids is of " + std::string(dtype_name(entry_.dtype)), path, fix);
    if (entry_.shape.empty() || entry_.shape.size() > 2) throw user_error("input_ids has shape " + to_string(entry_.shape), path, fix);
    if (element_count(entry_.shape) == 0) throw user_error("the file has no documents: input_ids is empty", path, fix);
    rows_ = entry_.shape.size() == 2 ? entry_.shape[0] : 1;
    stream_.seekg(entry_.offset);
  }

  bool next(TextDocument& document) override {
    if (row_ == rows_) return false;
    document = {{}, {}, true, path_ + ": row " + std::to_string(row_++) + " of input_ids"};
    const auto width = static_cast<size_t>(entry_.shape.back());
    if (entry_.dtype == DType::kI32)
      read_row<int32_t>(width, document);
    else
      read_row<int64_t>(width, document);
    return true;
  }

 private:
  template <class T>
  void read_row(size_t width, TextDocument& document) {
    std::vector<T> row(width);
    const auto bytes = static_cast<std::streamsize>(width * sizeof(T));
    if (!stream_.read(reinterpret_cast<char*>(row.data()), bytes)) {
      check_stream(stream_, path_);
      throw data_error("the file became shorter while it was read", path_);
    }
    document.ids.reserve(width);
    for (const T id : row) document.ids.push_back(checked_id(id, document.where));
  }

  std::string path_;
  std::ifstream stream_;
  TensorEntry entry_;
  int64_t rows_ = 0, row_ = 0;
};

}  // namespace

std::unique_ptr<TextDocuments> open_documents(const std::string& path) {
  const std::string extension = std::filesystem::path(path).extension().string();
  if (extension == ".jsonl") return std::make_unique<JsonLines>(path);
  if (extension == ".txt") return std::make_unique<WholeFile>(path);
  if (extension == ".safetensors") return std::make_unique<TensorRows>(path);
  throw user_error("unknown kind of calibration data '" + extension + "'", path, "use one of: .jsonl, .txt, .safetensors");
}

}  // namespace ptq::checkpoint
