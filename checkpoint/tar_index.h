#pragma once
// The members of an uncompressed tar archive, found by walking its headers: their bytes are read in place. Understands what Python and GNU
// tar write: ustar prefixes, GNU long names and base-256 sizes, pax paths and sizes.

#include <string>

#include "checkpoint/file_set.h"

namespace ptq::checkpoint {

/// Whether the file begins like a tar archive, or like a compressed one (which index_tar refuses with words of its own).
bool looks_like_tar(const std::string& path);

/// Regular files by their names without a leading "./"; folders are left out. Reads headers only.
/// Throws a user Error for a compressed archive (with the command that decompresses it), a data Error for: a damaged or truncated one,
/// absolute names, names with "..", links, devices, sparse files, two members of one name.
FileSet index_tar(const std::string& path);

}  // namespace ptq::checkpoint
