#include "checkpoint/safetensors_header.h"

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr size_t kMaxNameBytes = 4096;
constexpr size_t kMaxDimensions = 8;
/// Real headers have 3 levels; fields nobody knows may bring some of their own.
constexpr int kMaxDepth = 16;
constexpr const char* kDownloadAgain = "the file is damaged or was written by a faulty program: download it again";

/// Receives the parser's events. Levels: 1 the header, 2 one tensor or the metadata, 3 a list of numbers; below level 2 a field nobody
/// knows may hold anything. Every method returns whether to go on; fail() keeps the reason.
class HeaderEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  const std::string& failure() const { return failure_; }
  HeaderText& result() { return result_; }

  bool null() override { return other_value("null"); }
  bool boolean(bool) override { return other_value("a boolean"); }
  bool number_integer(number_integer_t) override { return other_value("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return other_value("a number that is not an unsigned 64-bit integer"); }
  bool binary(binary_t&) override { return other_value("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (!list_) return other_value("a number");
    if (list_->size() == list_limit_)
      return fail("tensor " + quoted_name(tensor_.name) +
                  (field_ == Field::kShape ? " has more than 8 dimensions" : " has more than 2 data_offsets"));
    list_->push_back(value);
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && in_metadata_) {
      result_.metadata[key_] = std::move(text);
      return true;
    }
    if (depth_ == 2 && field_ == Field::kDtype) {
      tensor_.dtype = std::move(text);
      return true;
    }
    return other_value("a string");
  }

  bool start_object(size_t) override {
    if (depth_ >= kMaxDepth) return fail("its header is nested deeper than 16 levels");
    if (depth_ == 1) {
      tensor_ = {};
      tensor_.name = key_;
      seen_fields_ = 0;
    } else if (depth_ >= 2 && !is_skipping()) {
      return other_value("an object");
    }
    ++depth_;
    return true;
  }

  bool key(string_t& text) override {
    if (depth_ == 1) return tensor_key(std::move(text));
    if (depth_ != 2) return true;
    if (in_metadata_) {
      key_ = std::move(text);
      if (result_.metadata.contains(key_)) return fail("its metadata has the key " + quoted_name(key_) + " twice");
      return true;
    }
    field_ = text == "dtype" ? Field::kDtype : text == "shape" ? Field::kShape : text == "data_offsets" ? Field::kOffsets : Field::kUnknown;
    const unsigned bit = field_ == Field::kUnknown ? 0 : 1u << static_cast<unsigned>(field_);
    if (seen_fields_ & bit) return fail("tensor " + quoted_name(tensor_.name) + " has the key " + quoted_name(text) + " twice");
    seen_fields_ |= bit;
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ != 1) return true;
    if (!std::exchange(in_metadata_, false)) return end_tensor();
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ >= kMaxDepth) return fail("its header is nested deeper than 16 levels");
    if (!is_skipping()) {
      if (depth_ != 2 || in_metadata_ || field_ == Field::kDtype) return other_value("a list");
      list_ = field_ == Field::kShape ? &tensor_.shape : &tensor_.data_offsets;
      list_limit_ = field_ == Field::kShape ? kMaxDimensions : 2;
    }
    ++depth_;
    return true;
  }

  bool end_array() override {
    --depth_;
    list_ = nullptr;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) override {
    return fail("its header is not JSON: " + json_words(error));
  }

 private:
  enum class Field : unsigned { kUnknown, kDtype, kShape, kOffsets };

  bool fail(std::string reason) {
    if (failure_.empty()) failure_ = std::move(reason);
    return false;
  }

  bool is_skipping() const { return depth_ >= 2 && !in_metadata_ && field_ == Field::kUnknown; }

  bool tensor_key(std::string name) {
    if (name.size() > kMaxNameBytes) return fail("a tensor's name has more than 4096 bytes: " + quoted_name(name));
    if (name.find('\0') != std::string::npos) return fail("a tensor's name contains a NUL: " + quoted_name(name));
    if (!names_.insert(name).second) return fail("its header has the key " + quoted_name(name) + " twice");
    in_metadata_ = name == "__metadata__";
    key_ = std::move(name);
    return true;
  }

  bool end_tensor() {
    const char* missing = !has(Field::kDtype) ? "dtype" : !has(Field::kShape) ? "shape" : !has(Field::kOffsets) ? "data_offsets" : nullptr;
    if (missing) return fail("tensor " + quoted_name(tensor_.name) + " has no " + missing);
    if (tensor_.data_offsets.size() != 2) return fail("tensor " + quoted_name(tensor_.name) + " does not have 2 data_offsets");
    result_.tensors.push_back(std::exchange(tensor_, {}));
    field_ = Field::kUnknown;
    return true;
  }

  bool has(Field field) const { return (seen_fields_ >> static_cast<unsigned>(field)) & 1u; }

  /// A value of a kind that no known place takes.
  bool other_value(const char* kind) {
    if (is_skipping()) return true;
    if (depth_ == 0) return fail(std::string("its header is ") + kind + " instead of a JSON object");
    if (in_metadata_) return fail("its metadata " + (depth_ == 1 ? "is " : quoted_name(key_) + " is ") + kind + " instead of a string");
    if (depth_ == 1) return fail("tensor " + quoted_name(key_) + " is " + kind + " instead of an object");
    const char* field = field_ == Field::kDtype ? "dtype" : field_ == Field::kShape ? "shape" : "data_offsets";
    return fail("tensor " + quoted_name(tensor_.name) + " has " + kind + " in its " + field);
  }

  HeaderText result_;
  std::string failure_;
  std::unordered_set<std::string> names_;
  int depth_ = 0;
  bool in_metadata_ = false;
  std::string key_;  ///< the last key of level 1, or of level 2 in the metadata
  HeaderTensor tensor_;
  Field field_ = Field::kUnknown;
  unsigned seen_fields_ = 0;  ///< one bit for each Field met in the current tensor
  std::vector<uint64_t>* list_ = nullptr;
  size_t list_limit_ = 0;
};
}  // namespace

HeaderText parse_header_text(const std::string& text, const std::string& path) {
  // The parser takes a NUL for the end of its input and skips a byte order mark: neither is in the format.
  if (text.find('\0') != std::string::npos) throw data_error("its header is not JSON: a NUL byte", path, kDownloadAgain);
  if (text.starts_with("\xEF\xBB\xBF")) throw data_error("its header is not JSON: a byte order mark", path, kDownloadAgain);
  HeaderEvents events;
  try {
    if (nlohmann::json::sax_parse(text, &events)) return std::move(events.result());
  } catch (const nlohmann::json::exception& error) {
    throw data_error("its header is not JSON: " + json_words(error), path, kDownloadAgain);
  }
  throw data_error("not a sound safetensors file: " + events.failure(), path, kDownloadAgain);
}

}  // namespace ptq::checkpoint
