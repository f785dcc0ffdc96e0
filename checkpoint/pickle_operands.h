#pragma once
// The text of a pickle taken apart into opcodes and their operands, never past its end.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace ptq::checkpoint {

class PickleOperands {
 public:
  /// Thrown where the text ends before what is asked for.
  struct EndOfText {};

  explicit PickleOperands(std::string_view text) : text_(text) {}

  /// Bytes taken so far.
  size_t position() const { return at_; }
  std::string_view take(uint64_t bytes) {
    if (bytes > text_.size() - at_) throw EndOfText();
    const std::string_view taken = text_.substr(at_, bytes);
    at_ += bytes;
    return taken;
  }
  /// A little-endian number of up to 8 bytes.
  uint64_t number(size_t bytes) {
    uint64_t value = 0;
    std::memcpy(&value, take(bytes).data(), bytes);
    return value;
  }
  /// Up to a newline, which is taken but no part of it.
  std::string_view line() {
    const size_t end = text_.find('\n', at_);
    if (end == std::string_view::npos) throw EndOfText();
    const std::string_view taken = text_.substr(at_, end - at_);
    at_ = end + 1;
    return taken;
  }

 private:
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace ptq::checkpoint
