#pragma once
// Which files make up a Hugging Face checkpoint, and which files beside them do not belong to the weights. Looks at names and the index
// only, never into a weight file.

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ptq::checkpoint {

/// File name -> the tensors the index says it holds; no list where there is no index: all of them.
using HfShards = std::map<std::string, std::optional<std::vector<std::string>>>;

/// How the files of a checkpoint are called: an index, the one file of a small model, and HEAD + X-of-Y + TAIL.
struct HfFileNames {
  std::string_view index, single, head, tail;
};
inline constexpr HfFileNames kSafetensorsNames{"model.safetensors.index.json", "model.safetensors", "model-", ".safetensors"};
inline constexpr HfFileNames kTorchNames{"pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-", ".bin"};

/// Whether the folder has an index or a file named like a model's weights.
bool has_hf_shards(const std::string& folder, const HfFileNames& names = kSafetensorsNames);

/// The index if there is one, else the single file, else all of the numbered ones. Every file named is there.
/// Throws a data Error for: an index that is no JSON, has no weight_map or names one tensor twice, file names that are more than a base
/// name, missing files, and shards of two different sets.
HfShards find_hf_shards(const std::string& folder, const HfFileNames& names = kSafetensorsNames);

/// Relative names, sorted, of the files in the folder and in its sub-folders that are not weights of any framework nor an index of them.
/// Left out too: hidden files and folders, original/ (the same weights in their maker's own format) and hf_quant_config.json (it
/// describes the quantization of the input). Links to files count, links to folders do not.
std::vector<std::string> hf_companion_files(const std::string& folder);

}  // namespace ptq::checkpoint
