#pragma once
// Throw-away folders and small tokenizer.json files for the tests of this folder.

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/tokenizer.h"
#include "kernels/core/error.h"

namespace ptq::test {

using nlohmann::json;

/// A folder that goes with the test.
class ScratchFolder {
 public:
  ScratchFolder() {
    static std::atomic<int> count{0};
    path_ = std::filesystem::temp_directory_path() / ("ptq_tokenizer_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string path(const std::string& name = "") const { return (path_ / name).string(); }
  /// Writes a file and returns its path.
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }

 private:
  std::filesystem::path path_;
};

inline checkpoint::Tokenizer open_tokenizer(const json& file) {
  const ScratchFolder folder;
  folder.write("tokenizer.json", file.dump());
  return checkpoint::Tokenizer::open(folder.path());
}

/// A BPE file whose vocabulary is the list, ids in order, everything else off.
inline json small_tokenizer(const std::vector<std::string>& vocabulary,
                            const std::vector<std::pair<std::string, std::string>>& merges = {}) {
  json vocab = json::object();
  for (const auto& token : vocabulary) vocab[token] = vocab.size();
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", nullptr},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

/// The Error that run() throws; a failed test where it throws none.
template <class Run>
Error error_of(const Run& run) {
  try {
    run();
  } catch (const Error& failure) {
    return failure;
  }
  ADD_FAILURE() << "expected an error";
  return bug("no error");
}

}  // namespace ptq::test
