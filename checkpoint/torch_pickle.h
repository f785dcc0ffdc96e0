#pragma once
// Files of torch.save, the zip ones and the older stream: the tree of what was saved, its tensors described, and their bytes read. Only the
// tensors' own names are understood; whatever else was saved stays a node of the tree. Never converts a number.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/byte_slice.h"
#include "checkpoint/pickle.h"
#include "checkpoint/torch_zip.h"
#include "kernels/core/tensor.h"

namespace ptq::checkpoint {

/// The DType of a torch dtype's name ("bfloat16"); nothing where this program has none.
std::optional<DType> dtype_of_torch(std::string_view name);
/// The sizes of a torch.Size or a tuple of integers; nothing where it is none, has more than 8 dimensions, a negative one, or a product
/// that overflows.
std::optional<Shape> shape_of_torch(const PickleValue& value);

struct TorchTensor {
  DType dtype = DType::kF32;
  Shape shape;
  Shape strides;        ///< in elements, none negative
  std::string storage;  ///< the key of its storage: tensors of equal keys share memory
  int64_t offset = 0;   ///< of element 0, in bytes from the start of the file's slice
  bool is_contiguous = true;

  int64_t bytes() const { return element_count(shape) * dtype_bytes(dtype); }
  /// Length of dimension 0; a scalar has the one row 0.
  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  int64_t row_bytes() const { return rows() == 0 ? 0 : bytes() / rows(); }
};

class TorchFile {
 public:
  /// Whether the slice begins like a file of torch.save.
  static bool accepts(const ByteSlice& slice);
  /// Reads everything but the storages. Throws a data Error naming the slice where it is damaged, see torch_zip.h and pickle.h.
  explicit TorchFile(ByteSlice slice);

  const ByteSlice& slice() const { return slice_; }
  PickleValue root() const { return tree_.root(); }
  /// What lies under these keys of nested dicts, a Namespace's attributes among them; missing where there is no such thing.
  PickleValue find(const std::vector<std::string>& path) const;

  /// Whether a value was saved as a tensor of whatever kind (dense, quantized, sparse, ...).
  static bool is_tensor(const PickleValue& value);
  /// Describes a tensor; `name` is for messages. Throws a data Error where it is none, is of a kind or dtype that is not read, or does not
  /// fit its storage.
  TorchTensor tensor(const PickleValue& value, const std::string& name) const;

 private:
  struct Storage {
    std::optional<DType> dtype;  ///< nothing for bytes of any type
    TorchZip::Place place;
  };
  void open_stream();
  Storage storage(const PickleValue& persistent, const std::string& name) const;

  ByteSlice slice_;
  PickleTree tree_;
  std::optional<TorchZip> zip_;
  std::map<std::string, TorchZip::Place, std::less<>> streamed_;  ///< storages of the older stream, by key
};

/// Reads rows [begin, end) of dimension 0 (a scalar has the one row 0) into out, row-major: contiguous ones at one go, others gathered from
/// reads of up to 4 MiB. Any thread may.
void read_torch_rows(const ByteSlice& slice, const TorchTensor& tensor, int64_t begin, int64_t end, std::byte* out);

}  // namespace ptq::checkpoint
