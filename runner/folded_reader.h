#pragma once
// A model whose smoothing factors are folded into its tensors, all of them powers of two: the same function of the same tokens, bit by
// bit, because no significand changes. Exponents are kept, and the tensors scaled as they are read: no second copy of the model exists.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/reader.h"
#include "kernels/core/tensor.h"

namespace ptq::runner {

/// How a tensor [..., C] is scaled: the element of row r (all dimensions but the last one together) and column c by 2^(rows[r] +
/// columns[c]). Empty: by nothing. A tensor [S, R, C] has columns for each of S.
struct TensorExponents {
  std::vector<int8_t> rows, columns;
};

/// By tensor name.
class FoldExponents {
 public:
  /// Multiplies the rows or columns of a tensor [R, C] by factors that are powers of two; a vector's elements are columns. `stack` and
  /// `index`: of a tensor [stack, R, C], whose matrix `index` is meant. Throws a bug for any other factor.
  void scale_rows(const std::string& name, const Tensor& factors, int64_t stack = 1, int64_t index = 0);
  void scale_columns(const std::string& name, const Tensor& factors, int64_t stack = 1, int64_t index = 0);

  bool empty() const { return tensors_.empty(); }
  /// nullptr for a tensor that stays as it is.
  const TensorExponents* find(const std::string& name) const;
  const std::map<std::string, TensorExponents>& tensors() const { return tensors_; }
  /// Adds what others say; of one tensor, it is about different rows and columns.
  void add(const std::string& name, const TensorExponents& more);
  void add(const FoldExponents& more);

 private:
  std::map<std::string, TensorExponents> tensors_;
};

/// `reader` with these tensors scaled, exactly but for numbers that become smaller than the least normal one of their dtype.
std::unique_ptr<checkpoint::Reader> open_folded(std::unique_ptr<checkpoint::Reader> reader, FoldExponents exponents);

}  // namespace ptq::runner
