#pragma once
// G = XᵀX of what some linears read, over all calibration tokens: it carries smoothing, clipping and error feedback. Every rank of a stage
// keeps some of its rows, so that there is one copy on all ranks together: K²·4/R bytes a rank. Tokens are added in the order of the
// calibration rows, one row at a time: the bits depend on neither ranks nor micro-batches. Where channels are too many, only blocks on the
// diagonal are kept, by their number alone.

#include <vector>

#include "kernels/core/tensor.h"
#include "parallel/communicator.h"
#include "parallel/shard.h"

namespace ptq::recipes {

/// The blocks on the diagonal that are kept of a Gram matrix of so many channels: the whole up to 16384, else blocks of 8192.
std::vector<parallel::Range> gram_blocks(int64_t channels);

/// One block on the diagonal, whole: [n, n] f32 of channels [columns.begin, columns.end).
struct GramBlock {
  parallel::Range columns;
  Tensor values;
};

/// A rank's rows of every block, as even_share cuts a block over the ranks.
class Gram {
 public:
  Gram(int64_t channels, int64_t ranks, int64_t rank);
  /// Adds one calibration row, x [T, K] bf16 | f32, the same on every rank.
  void add(const Tensor& x);
  int64_t channels() const { return channels_; }
  /// The whole blocks. Collective over the ranks; `group` has `ranks` members in their order.
  std::vector<GramBlock> gather(parallel::Communicator& group) const;
  /// Bytes of a rank's rows, rounded up to the rank that has the most.
  static int64_t bytes(int64_t channels, int64_t ranks);

 private:
  int64_t channels_;
  int64_t ranks_;
  std::vector<parallel::Range> blocks_, rows_;  ///< rows_: within the block
  std::vector<Tensor> values_;
};

/// Columns [begin, end) of x [T, C], any dtype: x itself where those are all.
Tensor columns_of(const Tensor& x, parallel::Range columns);

}  // namespace ptq::recipes
