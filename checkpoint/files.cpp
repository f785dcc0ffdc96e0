#include "checkpoint/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "checkpoint/file_descriptor.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace fs = std::filesystem;

namespace {
constexpr int64_t kChunkBytes = int64_t{8} << 20;
/// Far deeper than any config; keeps code that walks or dumps the value by recursion off the end of the stack.
constexpr int kMaxDepth = 100;

void check(const std::error_code& failed, const char* call, const std::string& path) {
  if (failed) throw errno_error(call, path, failed.value());
}

/// Runs body(entry) for everything below `folder`, without following links to folders (a link may lead up again).
template <class Body>
void walk(const std::string& folder, const Body& body) {
  std::error_code failed;
  fs::recursive_directory_iterator entry(folder, failed);
  check(failed, "opendir", folder);
  while (entry != fs::recursive_directory_iterator()) {
    body(*entry);
    entry.increment(failed);
    check(failed, "readdir", folder);
  }
}

std::string where_in(const std::string& path, const std::string& text, size_t byte) {
  const size_t end = std::min(byte, text.size());
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), '\n');
  const size_t newline = end == 0 ? std::string::npos : text.rfind('\n', end - 1);
  const size_t column = newline == std::string::npos ? end : end - newline - 1;
  return path + ":" + std::to_string(line) + ":" + std::to_string(column);
}
}  // namespace

std::string read_text(const std::string& path) {
  const Fd fd = open_file(path, O_RDONLY);
  std::string text;
  // In pieces rather than by the size fstat reports: files of /proc say 0.
  for (int64_t offset = 0;;) {
    text.resize(static_cast<size_t>(offset + kChunkBytes));
    const int64_t got = read_at(fd.get(), path, offset, text.data() + offset, kChunkBytes);
    offset += got;
    if (got < kChunkBytes) {
      text.resize(static_cast<size_t>(offset));
      return text;
    }
  }
}

std::string json_words(const nlohmann::json::exception& error) {
  const std::string what = error.what();
  const size_t prefix = what.starts_with("[json.exception.parse_error") ? what.find(": ") : what.find("] ");
  return prefix == std::string::npos ? what : what.substr(prefix + 2);
}

Json read_json(const std::string& path) {
  const std::string text = read_text(path);
  // The parser takes a NUL for the end of its input and would accept whatever follows.
  if (const size_t nul = text.find('\0'); nul != std::string::npos) throw data_error("not JSON: a NUL byte", where_in(path, text, nul + 1));
  try {
    return Json::parse(text, [&](int depth, Json::parse_event_t, Json&) {
      if (depth > kMaxDepth) throw data_error("JSON nested deeper than " + std::to_string(kMaxDepth) + " levels", path);
      return true;
    });
  } catch (const Json::parse_error& error) {
    throw data_error("not JSON: " + json_words(error), where_in(path, text, error.byte));
  } catch (const Json::exception& error) {  // numbers beyond a double's range
    throw data_error("not JSON: " + json_words(error), path);
  }
}

void write_text(const std::string& path, const std::string& text) {
  const Fd fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
  write_at(fd.get(), path, 0, text.data(), static_cast<int64_t>(text.size()));
  sync_file(fd.get(), path);
}

void replace_text(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  write_text(temporary, text);
  if (::rename(temporary.c_str(), path.c_str()) != 0) throw errno_error("rename", path, errno);
  sync_folder(parent_folder(path));
}

void make_folder(const std::string& path) {
  std::error_code failed;
  if (fs::is_directory(path, failed)) return;
  const std::string parent = parent_folder(path);
  if (parent != path) make_folder(parent);
  fs::create_directory(path, failed);
  check(failed, "mkdir", path);
  sync_folder(parent);
}

void copy_file(const std::string& from, const std::string& to) {
  const Fd source = open_file(from, O_RDONLY);
  make_folder(parent_folder(to));
  const Fd target = open_file(to, O_WRONLY | O_CREAT | O_TRUNC);
  std::string chunk(static_cast<size_t>(kChunkBytes), '\0');
  for (int64_t offset = 0;;) {
    const int64_t got = read_at(source.get(), from, offset, chunk.data(), kChunkBytes);
    write_at(target.get(), to, offset, chunk.data(), got);
    offset += got;
    if (got < kChunkBytes) break;
  }
  sync_file(target.get(), to);
}

void remove_tree(const std::string& path) {
  std::error_code failed;
  fs::remove_all(path, failed);
  check(failed, "remove", path);
}

void sync_tree(const std::string& folder) {
  walk(folder, [](const fs::directory_entry& entry) {
    std::error_code failed;
    const fs::file_status status = entry.symlink_status(failed);
    check(failed, "lstat", entry.path().string());
    if (fs::is_regular_file(status)) sync_file(open_file(entry.path().string(), O_RDONLY).get(), entry.path().string());
    if (fs::is_directory(status)) sync_folder(entry.path().string());
  });
  sync_folder(folder);
}

void publish(const std::string& work, const std::string& output) {
  // Plain rename(2) replaces an empty folder without a word; this flag does not, and leaves no moment between look and leap.
  int failed = ::renameat2(AT_FDCWD, work.c_str(), AT_FDCWD, output.c_str(), RENAME_NOREPLACE);
  bool is_taken = failed != 0 && errno == EEXIST;
  if (failed != 0 && (errno == EINVAL || errno == ENOSYS)) {  // file systems without the flag, NFS among them
    struct stat status {};
    is_taken = ::lstat(output.c_str(), &status) == 0;
    if (!is_taken) failed = ::rename(work.c_str(), output.c_str());
  }
  if (is_taken)
    throw system_error("rename: the output exists already", output, "choose another output.path, or move the existing one away");
  if (failed != 0) throw errno_error("rename to " + output, work, errno);
  sync_folder(parent_folder(output));
}

void publish_over(const std::string& work, const std::string& output) {
  if (::renameat2(AT_FDCWD, work.c_str(), AT_FDCWD, output.c_str(), RENAME_EXCHANGE) != 0) {
    if (errno != EINVAL && errno != ENOSYS) throw errno_error("renameat2", output, errno);
    remove_tree(output);  // a file system that cannot exchange
    publish(work, output);
    return;
  }
  sync_folder(parent_folder(output));
  remove_tree(work);
}

std::vector<std::string> list_files(const std::string& folder) {
  std::vector<std::string> names;
  walk(folder, [&](const fs::directory_entry& entry) {
    std::error_code failed;
    if (entry.is_regular_file(failed)) names.push_back(entry.path().lexically_relative(folder).string());
  });
  std::sort(names.begin(), names.end());
  return names;
}

bool exists(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0;
}

int64_t free_bytes(const std::string& path) {
  struct statvfs status {};
  if (::statvfs(path.c_str(), &status) != 0) throw errno_error("statvfs", path, errno);
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

}  // namespace ptq::checkpoint
