// Rows of a tensor that torch saved, in whatever strides it has them.

#include <algorithm>
#include <cstring>
#include <vector>

#include "checkpoint/torch_pickle.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
/// Bytes of one read for tensors that are not contiguous.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

/// One dimension of a box to be gathered; strides in bytes.
struct Axis {
  int64_t size = 0, from = 0, to = 0;
};

/// Bytes from the first to behind the last element of the dimensions from `axis` on.
int64_t span(const std::vector<Axis>& axes, size_t axis, int64_t item_bytes) {
  int64_t bytes = item_bytes;
  for (; axis < axes.size(); ++axis) bytes += (axes[axis].size - 1) * axes[axis].from;
  return bytes;
}

void scatter(const std::vector<Axis>& axes, size_t axis, int64_t item_bytes, const std::byte* from, std::byte* to) {
  if (axis == axes.size()) {
    std::memcpy(to, from, static_cast<size_t>(item_bytes));
    return;
  }
  for (int64_t i = 0; i < axes[axis].size; ++i) scatter(axes, axis + 1, item_bytes, from + i * axes[axis].from, to + i * axes[axis].to);
}

/// Axes come in the order of their strides in the file, the largest first, so that reads move forward in it.
void gather(const ByteSlice& slice, const std::vector<Axis>& axes, size_t axis, int64_t item_bytes, int64_t from, std::byte* to,
            std::vector<std::byte>& buffer) {
  const int64_t bytes = span(axes, axis, item_bytes);
  if (axis == axes.size() || bytes <= kPieceBytes) {
    buffer.resize(static_cast<size_t>(bytes));
    slice.read(from, buffer.data(), bytes);
    scatter(axes, axis, item_bytes, buffer.data(), to);
    return;
  }
  // As many steps along this axis at once as fit one read.
  const int64_t inner = span(axes, axis + 1, item_bytes);
  const int64_t steps = inner >= kPieceBytes || axes[axis].from == 0 ? 1 : (kPieceBytes - inner) / axes[axis].from + 1;
  if (steps == 1) {
    for (int64_t i = 0; i < axes[axis].size; ++i)
      gather(slice, axes, axis + 1, item_bytes, from + i * axes[axis].from, to + i * axes[axis].to, buffer);
    return;
  }
  std::vector<Axis> part = axes;
  for (int64_t i = 0; i < axes[axis].size; i += steps) {
    part[axis].size = std::min(steps, axes[axis].size - i);
    gather(slice, part, axis, item_bytes, from + i * axes[axis].from, to + i * axes[axis].to, buffer);
  }
}
}  // namespace

void read_torch_rows(const ByteSlice& slice, const TorchTensor& tensor, int64_t begin, int64_t end, std::byte* out) {
  require(0 <= begin && begin <= end && end <= tensor.rows(), "rows wanted outside the tensor");
  const int64_t total = (end - begin) * tensor.row_bytes();
  if (total == 0) return;
  if (tensor.is_contiguous) return slice.read(tensor.offset + begin * tensor.row_bytes(), out, total);

  const int64_t item_bytes = dtype_bytes(tensor.dtype);
  std::vector<Axis> axes(tensor.shape.size());
  int64_t to = item_bytes;
  for (size_t d = axes.size(); d-- > 0;) {
    // The stride of a dimension of size 1 may be anything.
    axes[d] = {d == 0 ? end - begin : tensor.shape[d], tensor.shape[d] == 1 ? 0 : tensor.strides[d] * item_bytes, to};
    to *= tensor.shape[d];
  }
  const int64_t from = tensor.offset + begin * axes[0].from;
  std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.from > b.from; });
  std::vector<std::byte> buffer;
  gather(slice, axes, 0, item_bytes, from, out, buffer);
}

}  // namespace ptq::checkpoint
