#pragma once
// A folder of a plain PyTorch distributed checkpoint (DCP) whose arrays have Hugging Face names: what torch.distributed.checkpoint.save
// writes of a Hugging Face model's state dict, alone or as {"model": ...} beside an optimizer. Megatron-core's torch_dist, which has a
// metadata.json, is another format in the same container.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/reader.h"
#include "checkpoint/torch_dist_store.h"

namespace ptq::checkpoint {

class DcpReader : public Reader {
 public:
  static constexpr std::string_view kLookedFor = ".metadata of torch.distributed.checkpoint";
  /// Whether `path` is a folder with .metadata and without metadata.json.
  static bool accepts(const std::string& path);
  /// Throws a data Error for what TorchDistStore refuses, and where no array lies under a Hugging Face name.
  static std::unique_ptr<Reader> open(const std::string& folder);

  std::string format() const override { return "PyTorch distributed"; }
  void read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override;
  /// A tensor's entry names the file of its first chunk alone; here are those of all chunks, and .metadata.
  std::vector<std::string> files() const override { return store_->files(); }
  std::vector<std::string> ignored() const override { return ignored_; }
  std::vector<std::string> companion_files() const override;

 private:
  explicit DcpReader(const std::string& folder);

  std::unique_ptr<TorchDistStore> store_;
  std::string prefix_;                ///< in front of the Hugging Face names, e.g. "model."; often ""
  std::vector<std::string> ignored_;  ///< sorted
};

}  // namespace ptq::checkpoint
