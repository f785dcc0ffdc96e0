#pragma once
// What may be the name of a tensor, or of a file beside the one that names it.

#include <string_view>

namespace ptq::checkpoint {

/// Valid UTF-8 of 1 to 4096 bytes without NUL.
bool is_tensor_name(std::string_view name);
/// A name without any path: cannot lead out of its folder.
bool is_base_name(std::string_view name);

}  // namespace ptq::checkpoint
