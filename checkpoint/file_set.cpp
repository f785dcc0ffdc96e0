#include "checkpoint/file_set.h"

#include <fcntl.h>

#include <filesystem>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/files.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

FileSet folder_files(const std::string& folder) {
  FileSet files;
  for (const std::string& name : list_files(folder)) {
    const std::string path = folder + "/" + name;
    std::error_code failed;
    const auto bytes = std::filesystem::file_size(path, failed);
    if (failed) throw errno_error("stat", path, failed.value());
    files[name] = {path, 0, static_cast<int64_t>(bytes)};
  }
  return files;
}

FileSet files_below(const FileSet& files, const std::string& folder) {
  if (folder.empty()) return files;
  FileSet below;
  const std::string prefix = folder + "/";
  for (auto at = files.lower_bound(prefix); at != files.end() && at->first.starts_with(prefix); ++at)
    below.emplace(at->first.substr(prefix.size()), at->second);
  return below;
}

std::string name_below(const std::string& root, const std::string& path) {
  if (path == root) return "";
  require(path.starts_with(root + "/"), "a file of another checkpoint");
  return path.substr(root.size() + 1);
}

std::string read_slice(const FileSlice& slice, int64_t most) {
  if (slice.bytes > most)
    throw data_error("the file has " + std::to_string(slice.bytes) + " bytes, more than any real one", where_of(slice));
  std::string text(static_cast<size_t>(slice.bytes), '\0');
  const Fd fd = open_file(slice.path, O_RDONLY);
  if (read_at(fd.get(), slice.path, slice.offset, text.data(), slice.bytes) != slice.bytes)
    throw data_error("the file is truncated", where_of(slice), "copy the checkpoint again, completely");
  return text;
}

std::string where_of(const FileSlice& slice) {
  return slice.offset == 0 ? slice.path : slice.path + " at byte " + std::to_string(slice.offset);
}

}  // namespace ptq::checkpoint
