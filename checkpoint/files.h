#pragma once
// Whole small files, durable renames and checksums. Every function throws a system Error naming call and path.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ptq::checkpoint {

/// Insertion-ordered JSON: what we write keeps the key order of the format.
using Json = nlohmann::ordered_json;

std::string read_text(const std::string& path);
/// Throws a data Error with file and position for text that is not JSON.
Json read_json(const std::string& path);
/// Writes `path` and fsyncs it.
void write_text(const std::string& path, const std::string& text);
/// Makes a folder (and its parents); fine if it is there.
void make_folder(const std::string& path);
/// Copies a file's bytes and fsyncs the copy; makes parent folders.
void copy_file(const std::string& from, const std::string& to);
void remove_tree(const std::string& path);
/// fsyncs every file and folder below `folder`, and itself.
void sync_tree(const std::string& folder);
/// Renames `work` to `output` and fsyncs the parent: the moment the output appears. `output` must not exist.
void publish(const std::string& work, const std::string& output);
/// Hex SHA-256 of a file, streamed.
std::string sha256_file(const std::string& path);
std::string sha256_text(const std::string& text);
/// Relative names of all regular files below `folder`, sorted.
std::vector<std::string> list_files(const std::string& folder);
bool exists(const std::string& path);
int64_t free_bytes(const std::string& path);

}  // namespace ptq::checkpoint
