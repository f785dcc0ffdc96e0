#pragma once
// What is this checkpoint? Reads headers and JSON only.

#include <string>

namespace ptq::runner {

/// Prints format, family, layers, parameters, dtypes, bytes and how it is quantized; as one JSON object with `json`. Throws Errors.
void inspect(const std::string& path, bool json);

}  // namespace ptq::runner
