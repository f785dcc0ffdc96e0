#include "checkpoint/text_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <iterator>

#include "checkpoint/text_documents.h"
#include "kernels/core/error.h"
#include "kernels/core/thread_pool.h"

namespace ptq::checkpoint {

namespace {

// Documents tokenized at a time. Fixed, so that what is read and which error comes first do not depend on the number of threads.
constexpr size_t kChunk = 64;

using Row = std::vector<int32_t>;

/// All documents of all files, opening each file when its turn comes.
class DocumentStream {
 public:
  explicit DocumentStream(const std::vector<std::string>& files) : files_(files) {
    // A misspelt last file is told now, even where the first ones have rows enough.
    for (const auto& file : files) open_documents(file);
  }

  bool next(TextDocument& document) {
    for (;; current_.reset()) {
      if (!current_) {
        if (next_file_ == files_.size()) return false;
        current_ = open_documents(files_[next_file_++]);
      }
      if (current_->next(document)) return true;
    }
  }

 private:
  const std::vector<std::string>& files_;
  size_t next_file_ = 0;
  std::unique_ptr<TextDocuments> current_;
};

/// Turns documents, in order, into rows.
class RowBuilder {
 public:
  explicit RowBuilder(const TextRequest& request) : request_(request), length_(static_cast<size_t>(request.sequence_length)) {}

  bool is_full() const { return request_.samples > 0 && rows_.size() >= static_cast<size_t>(request_.samples); }

  void add(const TextDocument& document, const Row& ids) {
    ++documents_;
    if (request_.vocab_size > 0) {
      const auto beyond = std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return id >= request_.vocab_size; });
      if (beyond != ids.end()) {
        throw user_error(fmt::format("token id {} is outside the model's vocabulary of {}", *beyond, request_.vocab_size), document.where,
                         "use the tokenizer of this model for the calibration data");
      }
    }
    if (request_.pack)
      add_packed(ids);
    else if (!ids.empty() && (document.is_ids || !document.text.empty()))
      add_alone(ids);
  }

  std::vector<Row> finish() {
    // The row begun last is never full: it would have been closed.
    const auto wanted = static_cast<size_t>(std::max<int64_t>(request_.samples, 1));
    if (rows_.size() < wanted) throw too_few(wanted);
    return std::move(rows_);
  }

 private:
  void add_packed(const Row& ids) {
    for (size_t at = 0; at < ids.size() && !is_full();) {
      const size_t taken = std::min(ids.size() - at, length_ - open_row_.size());
      open_row_.insert(open_row_.end(), ids.begin() + static_cast<std::ptrdiff_t>(at),
                       ids.begin() + static_cast<std::ptrdiff_t>(at + taken));
      at += taken;
      close_row();
    }
    if (is_full()) return;
    open_row_.push_back(*request_.eos_id);
    close_row();
  }

  void close_row() {
    if (open_row_.size() < length_) return;
    rows_.push_back(std::move(open_row_));
    open_row_.clear();
  }

  void add_alone(const Row& ids) {
    if (request_.drop_short && ids.size() < length_) return;
    rows_.emplace_back(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), length_)));
  }

  Error too_few(size_t wanted) const {
    const std::string what = request_.pack || request_.drop_short ? fmt::format("rows of {} tokens", length_) : "rows";
    std::string files;
    for (const auto& file : request_.files) files += (files.empty() ? "" : ", ") + file;
    std::string fix;
    if (!rows_.empty()) fix = fmt::format("lower samples to {}, ", rows_.size());
    if (request_.pack || request_.drop_short) fix += "lower sequence_length, ";
    return user_error(fmt::format("the data has only {} {}, of {} documents, and {} are needed", rows_.size(), what, documents_, wanted),
                      files, fix + "or give more data");
  }

  const TextRequest& request_;
  size_t length_;
  std::vector<Row> rows_;
  Row open_row_;  ///< pack: the row being filled, never full
  int64_t documents_ = 0;
};

void check_request(const TextRequest& request) {
  if (request.files.empty()) throw user_error("no file with calibration data was given");
  if (request.sequence_length < 1) throw user_error("sequence_length must be at least 1");
  if (request.samples < 0) throw user_error("samples must not be negative", "", "use 0 for all rows there are");
  if (!request.pack) return;
  if (!request.eos_id) throw user_error("packing needs an EOS token, and the model names none", "", "set pack to false");
  if (request.vocab_size > 0 && (*request.eos_id < 0 || *request.eos_id >= request.vocab_size))
    throw user_error(fmt::format("EOS id {} is outside the model's vocabulary of {}", *request.eos_id, request.vocab_size));
}

}  // namespace

std::vector<std::vector<int32_t>> load_rows(const TextRequest& request, const Tokenizer* tokenizer) {
  check_request(request);
  DocumentStream stream(request.files);
  RowBuilder builder(request);
  std::vector<TextDocument> documents;
  for (bool is_more = true; is_more && !builder.is_full();) {
    // A faulty line matters only if the documents before it do not suffice.
    std::exception_ptr fault;
    documents.clear();
    try {
      for (TextDocument document; documents.size() < kChunk && (is_more = stream.next(document));) {
        if (!document.is_ids && tokenizer == nullptr) {
          throw user_error("the data is text, and there is no tokenizer", document.where,
                           "put tokenizer.json beside the model, or give token ids: {\"input_ids\": [...]}");
        }
        documents.push_back(std::move(document));
      }
    } catch (const Error&) {
      fault = std::current_exception();
    }
    std::vector<Row> ids(documents.size());
    parallel_for(static_cast<int64_t>(documents.size()), [&](int64_t i) {
      TextDocument& document = documents[static_cast<size_t>(i)];
      ids[static_cast<size_t>(i)] = document.is_ids ? std::move(document.ids) : tokenizer->encode(document.text);
    });
    for (size_t i = 0; i < documents.size() && !builder.is_full(); ++i) builder.add(documents[i], ids[i]);
    if (fault && !builder.is_full()) std::rethrow_exception(fault);
  }
  return builder.finish();
}

}  // namespace ptq::checkpoint
