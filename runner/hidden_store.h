#pragma once
// The hidden states of all micro-batches between two windows: what lives as long as the run. In host memory, or in an unlinked file under
// `scratch` when they would not fit. Each tensor rank keeps its share of every micro-batch's tokens.

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/output_layout.h"
#include "kernels/core/tensor.h"

namespace ptq::runner {

class HiddenStore {
 public:
  /// `rows[m]` tokens of micro-batch m are kept here, each of `width` elements of `dtype`. spill_folder "": in memory.
  static HiddenStore open(std::vector<int64_t> rows, int64_t width, DType dtype, const std::string& spill_folder);

  /// The states of micro-batch m, [rows[m], width]: the memory itself, or a copy read from disk into `scratch`.
  Tensor load(int64_t m, const Tensor& scratch) const;
  /// Keeps them.
  void store(int64_t m, const Tensor& states);
  bool spilled() const { return static_cast<bool>(file_); }
  int64_t bytes() const { return bytes_; }
  DType dtype() const { return dtype_; }
  int64_t rows(int64_t m) const { return rows_[static_cast<size_t>(m)]; }

 private:
  std::vector<int64_t> rows_, offsets_;
  int64_t width_ = 0, bytes_ = 0;
  DType dtype_ = DType::kBF16;
  std::vector<Tensor> memory_;
  checkpoint::Fd file_;
  std::string path_;
};

}  // namespace ptq::runner
