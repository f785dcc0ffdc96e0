#pragma once
// A Hugging Face folder of safetensors files. The names in the files are the names of the tensors. Headers are read on opening, weights
// by position afterwards, from any thread.

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/reader.h"
#include "checkpoint/weight_file.h"

namespace ptq::checkpoint {

class HfReader : public Reader {
 public:
  static constexpr std::string_view kLookedFor =
      "a folder with model.safetensors.index.json, model.safetensors or model-00001-of-0000N.safetensors";
  /// Whether `path` looks like such a folder.
  static bool accepts(const std::string& path);
  /// Throws a data Error naming the file for: a damaged header, a missing shard, an index that names files outside the folder or tensors
  /// its files lack, a tensor that two files hold.
  static std::unique_ptr<Reader> open(const std::string& folder);

  std::string format() const override { return "safetensors"; }
  void read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override;
  std::vector<std::string> companion_files() const override;

 private:
  explicit HfReader(const std::string& folder);
  void add_file(const std::string& file, const std::vector<std::string>* wanted);
  const WeightFile& weight_file(const std::string& file) const;

  struct File {
    int64_t bytes = 0;                   ///< when its header was read
    std::unique_ptr<WeightFile> opened;  ///< when it is first read from: a rank of many reads few of the files
  };
  mutable std::mutex mutex_;  ///< guards the opening of files
  mutable std::map<std::string, File> files_;
};

}  // namespace ptq::checkpoint
