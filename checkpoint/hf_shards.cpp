#include "checkpoint/hf_shards.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "checkpoint/tensor_name.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace fs = std::filesystem;

namespace {
constexpr const char* kDownloadAgain = "download the checkpoint again, completely";
/// The largest published indexes are near 10 MB.
constexpr uintmax_t kMaxIndexBytes = uintmax_t{256} << 20;
constexpr int kMaxIndexDepth = 16;

std::string path_of(const std::string& folder, std::string_view name) { return folder + "/" + std::string(name); }

std::vector<fs::directory_entry> entries_of(const std::string& folder) {
  std::error_code failed;
  std::vector<fs::directory_entry> entries;
  fs::directory_iterator entry(folder, failed);
  for (; !failed && entry != fs::directory_iterator(); entry.increment(failed)) entries.push_back(*entry);
  if (failed) throw errno_error("readdir", folder, failed.value());
  return entries;
}

/// X and Y of model-X-of-Y.safetensors.
std::optional<std::pair<int, int>> shard_number(std::string_view name, const HfFileNames& names) {
  const std::string_view head = names.head, tail = names.tail;
  if (!name.starts_with(head) || !name.ends_with(tail) || name.size() < head.size() + tail.size()) return std::nullopt;
  const std::string_view middle = name.substr(head.size(), name.size() - head.size() - tail.size());
  std::pair<int, int> number;
  const auto first = std::from_chars(middle.data(), middle.data() + middle.size(), number.first);
  if (first.ec != std::errc() || !std::string_view(first.ptr, middle.data() + middle.size()).starts_with("-of-")) return std::nullopt;
  const auto second = std::from_chars(first.ptr + 4, middle.data() + middle.size(), number.second);
  if (second.ec != std::errc() || second.ptr != middle.data() + middle.size()) return std::nullopt;
  return number;
}

/// nlohmann keeps the last of equal keys; which file a name is in must not depend on that.
nlohmann::json parse_index(const std::string& path) {
  std::error_code failed;
  if (const uintmax_t bytes = fs::file_size(path, failed); !failed && bytes > kMaxIndexBytes)
    throw data_error("the index has " + std::to_string(bytes) + " bytes, more than any real one", path);
  const std::string text = read_text(path);
  std::set<std::string> names;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    if (depth > kMaxIndexDepth) throw data_error("the index is nested too deep", path);
    if (event == nlohmann::json::parse_event_t::key && depth == 2 && !names.insert(value.get<std::string>()).second)
      throw data_error("the index names " + quoted_name(value.get<std::string>()) + " twice", path, kDownloadAgain);
    if (event == nlohmann::json::parse_event_t::object_end && depth == 1) names.clear();
    return true;
  };
  try {
    if (text.find('\0') != std::string::npos) throw data_error("the index is not JSON: a NUL byte", path, kDownloadAgain);
    return nlohmann::json::parse(text, watch);
  } catch (const nlohmann::json::exception& error) {
    throw data_error("the index is not JSON: " + json_words(error), path, kDownloadAgain);
  }
}

HfShards shards_of_index(const std::string& path, const std::string& folder) {
  const nlohmann::json index = parse_index(path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty())
    throw data_error("the index has no weight_map of tensor names to files", path, kDownloadAgain);

  HfShards shards;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) throw data_error("the index gives no file name for tensor " + quoted_name(name), path, kDownloadAgain);
    const auto& text = file.get_ref<const std::string&>();
    if (!is_base_name(text))
      throw data_error(
          "the index places tensor " + quoted_name(name) + " in " + quoted_name(text) + ", which is not the name of a file beside it", path,
          "do not use this checkpoint: its index points outside its folder");
    auto& names = shards[text];
    if (!names) names.emplace();
    names->push_back(name);
  }
  for (const auto& [file, names] : shards)
    if (!exists(folder + "/" + file))
      throw data_error("shard " + quoted_name(file) + " is missing: it holds " + std::to_string(names->size()) + " of the checkpoint's " +
                           std::to_string(map->size()) + " tensors",
                       folder, kDownloadAgain);
  return shards;
}

HfShards shards_by_number(const std::string& folder, const HfFileNames& names) {
  HfShards shards;
  std::set<int> present, totals;
  for (const fs::directory_entry& entry : entries_of(folder)) {
    const std::string name = entry.path().filename().string();
    const auto number = shard_number(name, names);
    if (!number) continue;
    shards[name] = std::nullopt;
    totals.insert(number->second);
    if (!present.insert(number->first).second && totals.size() == 1)
      throw data_error("two files are shard " + std::to_string(number->first) + " of the checkpoint", folder, kDownloadAgain);
  }
  if (totals.size() != 1)
    throw data_error("shards of different checkpoints lie in one folder, and no " + std::string(names.index) + " says which to use", folder,
                     "keep one set of " + std::string(names.head) + "X-of-Y" + std::string(names.tail) + " files, or add the index");
  // Numbers outside 1..Y cannot make up the count: then one inside it is missing.
  const int total = *totals.begin();
  for (int number = 1; number <= total; ++number)
    if (!present.contains(number))
      throw data_error("shard " + std::to_string(number) + " of " + std::to_string(total) + " is missing", folder, kDownloadAgain);
  if (static_cast<int>(present.size()) != total)
    throw data_error("there are more shards than the " + std::to_string(total) + " their names speak of", folder, kDownloadAgain);
  return shards;
}

bool is_weight_file(std::string_view name) {
  constexpr std::array<std::string_view, 16> kEndings{".safetensors", ".index.json", ".bin",     ".pt",        ".pth",     ".ckpt",
                                                      ".gguf",        ".h5",         ".onnx",    ".onnx_data", ".msgpack", ".ot",
                                                      ".tflite",      ".distcp",     ".mlmodel", ".part"};
  return name.starts_with("consolidated.") || std::any_of(kEndings.begin(), kEndings.end(), [&](auto end) { return name.ends_with(end); });
}
}  // namespace

bool has_hf_shards(const std::string& folder, const HfFileNames& names) {
  std::error_code failed;
  if (!fs::is_directory(folder, failed)) return false;
  if (exists(path_of(folder, names.index)) || exists(path_of(folder, names.single))) return true;
  const auto entries = entries_of(folder);
  return std::any_of(entries.begin(), entries.end(),
                     [&](const auto& entry) { return shard_number(entry.path().filename().string(), names).has_value(); });
}

HfShards find_hf_shards(const std::string& folder, const HfFileNames& names) {
  if (const std::string index = path_of(folder, names.index); exists(index)) return shards_of_index(index, folder);
  if (exists(path_of(folder, names.single))) return {{std::string(names.single), std::nullopt}};
  return shards_by_number(folder, names);
}

std::vector<std::string> hf_companion_files(const std::string& folder) {
  std::vector<std::string> names;
  const auto add = [&](const fs::directory_entry& entry, const std::string& name) {
    std::error_code failed;
    const std::string base = entry.path().filename().string();
    if (!base.starts_with('.') && !is_weight_file(base) && entry.is_regular_file(failed)) names.push_back(name);
  };
  for (const fs::directory_entry& entry : entries_of(folder)) {
    std::error_code failed;
    const std::string name = entry.path().filename().string();
    const bool is_folder = fs::is_directory(entry.symlink_status(failed));
    if (is_folder && !name.starts_with('.') && name != "original") {
      for (const fs::directory_entry& inner : entries_of(entry.path().string())) add(inner, name + "/" + inner.path().filename().string());
    } else if (!is_folder && name != "hf_quant_config.json") {
      add(entry, name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace ptq::checkpoint
