#pragma once
// What every checkpoint reader offers: named tensors of Hugging Face names and the bytes of any run of their rows. Never converts a
// number. Thread-safe after open: the loader thread reads while the main thread asks for shapes.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace ptq::checkpoint {

struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  std::string file;    ///< base name of the file that holds it
  int64_t offset = 0;  ///< of its first byte in that file
  int64_t bytes = 0;

  /// Length of dimension 0; a scalar has the one row 0.
  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  int64_t row_bytes() const { return rows() == 0 ? 0 : bytes / rows(); }
};

/// A name from a file nobody vouches for, made fit for a message: in quotes, control bytes as '?', cut where it is very long.
std::string quoted_name(const std::string& name);
/// "'a', 'b', 'c' and 5 more".
std::string first_names(const std::vector<std::string>& names);

class Reader {
 public:
  virtual ~Reader() = default;

  /// One word for `inspect`: "safetensors", ...
  virtual std::string format() const = 0;
  const std::string& folder() const { return folder_; }
  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  /// The entry of a tensor, or nullptr.
  const TensorEntry* find(const std::string& name) const;
  /// The entry of a tensor. Throws a data Error that names it when the checkpoint lacks it.
  const TensorEntry& at(const std::string& name) const;

  /// Reads rows [begin, end) of dimension 0 (a scalar has the one row 0) into out, with large sequential reads.
  /// Throws a data Error when the file is shorter than its header said, a system Error when the disk fails.
  virtual void read_rows(const TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const = 0;
  /// A whole tensor, in its own dtype.
  Tensor read(const std::string& name) const;
  /// Weight bytes read so far by this process.
  int64_t bytes_read() const { return bytes_read_.load(); }

  /// Names in the folder of the files that hold its tensors, sorted; "" is the file that folder() itself names. By default those its
  /// entries name.
  virtual std::vector<std::string> files() const;

  /// Names of what the files hold and the model has no need of, as the files call it: a training run's extra states. Sorted.
  virtual std::vector<std::string> ignored() const { return {}; }

  /// Files of the folder that are neither weights nor an index of them, relative names, sorted: what an export copies.
  virtual std::vector<std::string> companion_files() const = 0;

 protected:
  std::string folder_;
  std::map<std::string, TensorEntry> tensors_;
  mutable std::atomic<int64_t> bytes_read_{0};
};

/// Opens whatever checkpoint `path` is: tries the list in readers.cpp. Reads headers only. Throws user Errors for a path that is no
/// checkpoint, data Errors for a damaged one.
std::unique_ptr<Reader> open_checkpoint(const std::string& path);

}  // namespace ptq::checkpoint
