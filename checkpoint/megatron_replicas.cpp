#include "checkpoint/megatron_replicas.h"

#include <algorithm>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

constexpr int64_t kEndBytes = int64_t{64} << 10;

/// The first and last rows of a part.
std::vector<std::byte> ends_of(const MegatronPart& part) {
  const TorchTensor& tensor = part.tensor;
  const ByteSlice file = ByteSlice::of_slice(part.rank.file);
  const int64_t rows = tensor.rows(), some = std::min(rows, std::max<int64_t>(1, kEndBytes / std::max<int64_t>(1, tensor.row_bytes())));
  const int64_t bytes = some * tensor.row_bytes();
  std::vector<std::byte> ends(static_cast<size_t>(2 * bytes));
  read_torch_rows(file, tensor, 0, some, ends.data());
  read_torch_rows(file, tensor, rows - some, rows, ends.data() + bytes);
  return ends;
}

}  // namespace

void check_replicas(const std::string& name, const std::vector<MegatronPart>& parts, const std::string& path) {
  if (parts.size() < 2 || parts.front().tensor.bytes() == 0) return;
  const std::vector<std::byte> wanted = ends_of(parts.front());
  std::string ranks;
  for (size_t i = 1; i < parts.size(); ++i)
    if (ends_of(parts[i]) != wanted) ranks += (ranks.empty() ? "" : ", ") + std::to_string(parts[i].rank.tensor);
  if (!ranks.empty())
    throw data_error("array " + quoted_name(name) + " is held whole by every tensor rank, but that of rank " + ranks +
                         " is not that of rank " + std::to_string(parts.front().rank.tensor),
                     path, "the folders are of different runs or iterations: copy the checkpoint again");
}

}  // namespace ptq::checkpoint
