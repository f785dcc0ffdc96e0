#include "checkpoint/tensor_name.h"

#include <cstddef>

#include "checkpoint/tokenizer_unicode.h"

namespace ptq::checkpoint {

bool is_tensor_name(std::string_view name) {
  constexpr size_t kMaxBytes = 4096;
  return !name.empty() && name.size() <= kMaxBytes && name.find('\0') == std::string_view::npos &&
         find_invalid_utf8(name) == std::string_view::npos;
}

bool is_base_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\\') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

}  // namespace ptq::checkpoint
