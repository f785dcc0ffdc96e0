#include "checkpoint/megatron_replicas.h"

#include <algorithm>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 20, kMostBytes = int64_t{64} << 20;

}  // namespace

void check_replicas(const std::string& name, const std::vector<MegatronPart>& parts, const std::string& path) {
  const TorchTensor& first = parts.front().tensor;
  if (parts.size() < 2 || first.bytes() == 0 || first.bytes() > kMostBytes) return;
  std::vector<ByteSlice> files;
  for (const MegatronPart& part : parts) files.push_back(ByteSlice::of_slice(part.rank.file));
  const int64_t step = std::max<int64_t>(1, kBlockBytes / first.row_bytes());
  std::vector<std::byte> wanted, found;
  std::vector<bool> differs(parts.size(), false);
  for (int64_t begin = 0; begin < first.rows(); begin += step) {
    const int64_t end = std::min(first.rows(), begin + step);
    wanted.resize(static_cast<size_t>((end - begin) * first.row_bytes()));
    found.resize(wanted.size());
    read_torch_rows(files[0], first, begin, end, wanted.data());
    for (size_t i = 1; i < parts.size(); ++i) {
      if (differs[i]) continue;
      read_torch_rows(files[i], parts[i].tensor, begin, end, found.data());
      differs[i] = found != wanted;
    }
  }
  std::string ranks;
  for (size_t i = 1; i < parts.size(); ++i)
    if (differs[i]) ranks += (ranks.empty() ? "" : ", ") + std::to_string(parts[i].rank.tensor);
  if (!ranks.empty())
    throw data_error("array " + quoted_name(name) + " is held whole by every tensor rank, but that of rank " + ranks +
                         " is not that of rank " + std::to_string(parts.front().rank.tensor),
                     path, "the folders are of different runs or iterations: copy the checkpoint again");
}

}  // namespace ptq::checkpoint
