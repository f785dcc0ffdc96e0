#pragma once
// Bytes out of a zstd stream.

#include <cstdint>
#include <string>
#include <string_view>

namespace ptq::checkpoint {

/// Decodes a stream of one or more frames. Throws a data Error with `where` where it is damaged, ends early or gives more than
/// `most_bytes`; memory stays in proportion to what comes out.
std::string zstd_decoded(std::string_view compressed, int64_t most_bytes, const std::string& where);

}  // namespace ptq::checkpoint
