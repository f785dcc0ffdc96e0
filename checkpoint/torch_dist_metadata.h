#pragma once
// The `.metadata` of a PyTorch distributed checkpoint (DCP, and Megatron-core's torch_dist on top of it): which arrays there are, of which
// chunks, and where each chunk lies. Looks into no other file.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/array_store.h"
#include "checkpoint/box.h"

namespace ptq::checkpoint {

struct TorchDistChunk {
  Box box;                        ///< in its array, never empty
  uint32_t file = 0;              ///< index into TorchDistMetadata::files
  int64_t offset = 0, bytes = 0;  ///< of the slice that holds it: a file of torch.save of its own
  bool is_compressed = false;     ///< the slice went through zstd
};

struct TorchDistMetadata {
  struct Array {
    ArrayEntry entry;
    std::vector<TorchDistChunk> chunks;
  };
  std::vector<Array> arrays;          ///< in the order of the file; objects and what belongs to optimizers left out
  std::vector<std::string> left_out;  ///< names of those
  std::vector<std::string> files;     ///< base names
};

/// `where` is for messages. Throws a data Error for: a pickle that cannot be read or is no such metadata, names that are none or come
/// twice, dtypes this program has none for, chunks without a place or whose places overflow, files that are more than a base name, and
/// transforms other than zstd. Whether chunks tile their arrays is not looked at.
TorchDistMetadata parse_torch_dist_metadata(std::string_view text, const std::string& where);

}  // namespace ptq::checkpoint
