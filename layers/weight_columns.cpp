#include "kernels/ops.h"
#include "layers/backward.h"
#include "layers/tensor_slices.h"

namespace ptq::layers {

namespace {

/// The columns that this rank multiplies with, of all rows: [O, C of this rank].
Tensor exchanged(const LinearSpec& linear, const AttentionHeads* attention, const Tensor& weight, parallel::Communicator& tensor) {
  const int ranks = tensor.size();
  const auto columns_of = [&](int r) { return parallel::even_share(linear.in, ranks, r); };
  const auto rows_of = [&](int r) { return distinct_slice(linear, attention, ranks, r).size(); };
  const int64_t element = dtype_bytes(weight.dtype()), rows = rows_of(tensor.rank()), columns = columns_of(tensor.rank()).size();
  const Tensor sent = Tensor::empty({rows * linear.in}, weight.dtype());
  std::vector<int64_t> bytes_out, bytes_in;
  for (int r = 0; r < ranks; ++r) {
    const parallel::Range theirs = columns_of(r);
    Tensor piece = sent.rows(rows * theirs.begin, rows * theirs.end).reshaped({rows, theirs.size()});
    kernels::slice_columns(weight.rows(0, rows), theirs.begin, piece);
    bytes_out.push_back(piece.bytes());
    bytes_in.push_back(rows_of(r) * columns * element);
  }
  Tensor received = Tensor::empty({linear.out, columns}, weight.dtype());  // the ranks' rows come in the order of ranks, which is theirs
  tensor.all_to_all(sent.raw(), bytes_out, received.raw(), bytes_in);
  return received;
}

}  // namespace

LayerColumns weight_columns(const LayerSpec& layer, const LayerWeights& weights, parallel::Communicator& tensor) {
  LayerColumns columns(layer.linears.size());
  for (size_t i = 0; i < layer.linears.size(); ++i) {
    if (layer.linears[i].is_routed()) continue;
    const Tensor& weight = weights.linears[i].weight;
    const Tensor rows = tensor.size() == 1 ? weight : exchanged(layer.linears[i], layer.attention(), weight, tensor);
    columns[i] = Tensor::empty({rows.dim(1), rows.dim(0)}, rows.dtype());
    kernels::transpose(rows, columns[i]);
  }
  return columns;
}

}  // namespace ptq::layers
