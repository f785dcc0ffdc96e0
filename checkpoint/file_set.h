#pragma once
// Files a checkpoint is made of, by their names in it, wherever their bytes lie: in a folder, or as members of an archive that is never
// unpacked.

#include <cstdint>
#include <map>
#include <string>

namespace ptq::checkpoint {

/// A file, or a run of bytes of one.
struct FileSlice {
  std::string path;
  int64_t offset = 0;
  int64_t bytes = 0;
};

/// By name relative to the checkpoint: "model_weights/common.pt".
using FileSet = std::map<std::string, FileSlice>;

/// Every regular file below the folder. Links to files count, links to folders are not followed.
FileSet folder_files(const std::string& folder);
/// Those whose names begin with `folder` and '/', without it. `folder` "" is everything.
FileSet files_below(const FileSet& files, const std::string& folder);
/// The name of a file relative to the checkpoint at `root`, the folder it is in or the archive it is (which then is called "").
std::string name_below(const std::string& root, const std::string& path);
/// All of a small file. Throws a data Error when it has more than `most` bytes, or its file fewer than it should.
std::string read_slice(const FileSlice& slice, int64_t most);
/// What an error calls it: the path, and for a part of a file where in it.
std::string where_of(const FileSlice& slice);

}  // namespace ptq::checkpoint
