#include "recipes/gram.h"

#include <algorithm>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::recipes {

using parallel::even_share;
using parallel::Range;

std::vector<Range> gram_blocks(int64_t channels) {
  constexpr int64_t kWhole = 16384, kBlock = 8192;
  const int64_t width = channels <= kWhole ? std::max<int64_t>(1, channels) : kBlock;
  std::vector<Range> blocks;
  for (int64_t begin = 0; begin < channels; begin += width) blocks.push_back({begin, std::min(channels, begin + width)});
  return blocks;
}

Tensor columns_of(const Tensor& x, Range columns) {
  if (columns.begin == 0 && columns.end == x.dim(1)) return x;
  Tensor out = Tensor::empty({x.dim(0), columns.size()}, x.dtype());
  kernels::slice_columns(x, columns.begin, out);
  return out;
}

Gram::Gram(int64_t channels, int64_t ranks, int64_t rank) : channels_(channels), ranks_(ranks), blocks_(gram_blocks(channels)) {
  for (const Range& block : blocks_) {
    rows_.push_back(even_share(block.size(), ranks, rank));
    values_.push_back(Tensor::zeros({rows_.back().size(), block.size()}, DType::kF32));
  }
}

void Gram::add(const Tensor& x) {
  if (x.dim(0) == 0) return;
  for (size_t b = 0; b < blocks_.size(); ++b)
    if (rows_[b].size() > 0) kernels::gram_add(columns_of(x, blocks_[b]), rows_[b].begin, rows_[b].end, values_[b]);
}

std::vector<GramBlock> Gram::gather(parallel::Communicator& group) const {
  std::vector<GramBlock> whole;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const int64_t width = blocks_[b].size();
    GramBlock block{blocks_[b], Tensor::empty({width, width}, DType::kF32)};
    std::vector<int64_t> bytes;
    for (int64_t r = 0; r < ranks_; ++r) bytes.push_back(even_share(width, ranks_, r).size() * width * 4);
    group.all_gather(values_[b].raw(), bytes, block.values.raw());
    kernels::gram_complete(block.values);
    whole.push_back(std::move(block));
  }
  return whole;
}

int64_t Gram::bytes(int64_t channels, int64_t ranks) {
  int64_t bytes = 0;
  for (const Range& block : gram_blocks(channels)) bytes += even_share(block.size(), ranks, 0).size() * block.size() * 4;
  return bytes;
}

}  // namespace ptq::recipes
