#pragma once
// Whole small files, durable renames and checksums. Every function throws a system Error naming call and path.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ptq::checkpoint {

/// Insertion-ordered JSON: what we write keeps the key order of the format. Finds a key by looking at all of them, so an object of very
/// many keys (a vocabulary, a weight map) belongs in a plain nlohmann::json.
using Json = nlohmann::ordered_json;

std::string read_text(const std::string& path);
/// Throws a data Error with file, line and column for text that is not JSON or nests deeper than 100 levels. Of equal keys the last counts.
Json read_json(const std::string& path);
/// The words of the JSON library without its own prefix and position ("[json.exception.parse_error.101] parse error at line ...: WORDS").
std::string json_words(const nlohmann::json::exception& error);
/// Writes `path` and fsyncs it.
void write_text(const std::string& path, const std::string& text);
/// Writes it beside `path` and renames, both fsynced: who reads sees the old text or the new one, also after a power failure.
void replace_text(const std::string& path, const std::string& text);
/// Makes a folder (and its parents), there also after a power failure; fine if it is there.
void make_folder(const std::string& path);
/// Copies a file's bytes and fsyncs the copy; makes parent folders.
void copy_file(const std::string& from, const std::string& to);
void remove_tree(const std::string& path);
/// fsyncs every file and folder below `folder`, and itself.
void sync_tree(const std::string& folder);
/// Renames `work` to `output` and fsyncs the parent: the moment the output appears. `output` must not exist, not even as an empty folder.
void publish(const std::string& work, const std::string& output);
/// The same over an `output` that is there: both change places in one instant (where the file system can), then the old one is removed.
void publish_over(const std::string& work, const std::string& output);
/// Hex SHA-256 of a file, streamed.
std::string sha256_file(const std::string& path);
std::string sha256_text(const std::string& text);
/// Relative names of all regular files below `folder`, sorted. Links to files count, links to folders are not followed.
std::vector<std::string> list_files(const std::string& folder);
bool exists(const std::string& path);
/// Bytes an ordinary user may still write to the file system that holds `path`.
int64_t free_bytes(const std::string& path);

}  // namespace ptq::checkpoint
