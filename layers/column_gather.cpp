#include "layers/column_gather.h"

#include <cstring>
#include <numeric>

#include "kernels/core/thread_pool.h"

namespace ptq::layers {

Tensor gather_columns(parallel::Communicator& group, const Tensor& local, const std::vector<int64_t>& widths, const std::string& name,
                      Workspace& workspace) {
  if (group.size() == 1) return local;
  const int64_t tokens = local.dim(0), element = dtype_bytes(local.dtype());
  const int64_t total = std::accumulate(widths.begin(), widths.end(), int64_t{0});
  const Tensor slices = workspace.get(name + ".slices", {tokens * total}, local.dtype());
  Tensor out = workspace.get(name + ".whole", {tokens, total}, local.dtype());
  std::vector<int64_t> bytes;
  for (const int64_t width : widths) bytes.push_back(tokens * width * element);
  group.all_gather(local.raw(), bytes, slices.raw());
  parallel_ranges(tokens, 64, [&](int64_t begin, int64_t end) {
    int64_t slice_begin = 0, column = 0;
    for (const int64_t width : widths) {
      for (int64_t t = begin; t < end; ++t)
        std::memcpy(out.raw() + (t * total + column) * element, slices.raw() + (slice_begin + t * width) * element,
                    static_cast<size_t>(width * element));
      slice_begin += tokens * width;
      column += width;
    }
  });
  return out;
}

}  // namespace ptq::layers
