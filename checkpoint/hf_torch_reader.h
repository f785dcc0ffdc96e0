#pragma once
// A Hugging Face folder of pytorch_model*.bin files, each a state dict of torch.save. The keys are the names of the tensors; tied ones
// share a storage and are there under both names. Pickles and zip directories are read on opening, weights by position afterwards, from any
// thread.

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/open_files.h"
#include "checkpoint/reader.h"
#include "checkpoint/torch_pickle.h"

namespace ptq::checkpoint {

class HfTorchReader : public Reader {
 public:
  static constexpr std::string_view kLookedFor = "pytorch_model.bin.index.json, pytorch_model.bin or pytorch_model-00001-of-0000N.bin";
  /// Whether `path` looks like such a folder.
  static bool accepts(const std::string& path);
  /// Throws a data Error naming the file for: a damaged file, one that is no state dict, a missing shard, an index that names files outside
  /// the folder or tensors its files lack, a tensor that two files hold or one holds twice, tensors of kinds that are not read.
  static std::unique_ptr<Reader> open(const std::string& folder);

  std::string format() const override { return "torch pickle"; }
  void read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override;
  std::vector<std::string> companion_files() const override;

 private:
  explicit HfTorchReader(const std::string& folder);
  void add_file(const std::string& file, const std::vector<std::string>* wanted);
  ByteSlice slice(const std::string& file) const;

  mutable OpenFiles open_;
  std::map<std::string, TorchTensor> stored_;
};

}  // namespace ptq::checkpoint
