#pragma once
// What is this checkpoint? Reads headers and JSON only.

#include <string>

namespace ptq::runner {

/// Prints format, family, layers, parameters, dtypes, bytes and how it is quantized; as one JSON object with `json`. `config` is the folder
/// of config.json of a training checkpoint; without it there is no more to say of one than its format and arrays. Throws Errors.
void inspect(const std::string& path, const std::string& config, bool json);

}  // namespace ptq::runner
