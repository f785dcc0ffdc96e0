#include "runner/placement.h"

#include "layers/tensor_slices.h"

namespace ptq::runner {

using parallel::even_share;
using parallel::Range;

Placement place(const layers::LayerSpec& layer, const layers::TensorSpec& tensor, int64_t rows, const parallel::Mesh& mesh) {
  Placement placement;
  const int64_t data = mesh.shape().data, tensors = mesh.shape().tensor;
  const layers::AttentionHeads* attention = layer.attention();
  const bool is_linear = tensor.linear >= 0 && tensor.split != layers::Split::kWhole;
  placement.slice = is_linear
                        ? layers::tensor_slice(layer.linears[static_cast<size_t>(tensor.linear)], attention, tensors, mesh.tensor_rank())
                        : Range{0, rows};
  placement.over_stage = !is_linear || !layers::slices_partition(tensor.split, attention, tensors);
  if (placement.over_stage) {
    const int64_t members = data * tensors;
    for (int64_t r = 0; r < members; ++r) placement.shares.push_back(even_share(rows, members, r).size());
    placement.share = even_share(rows, members, mesh.stage().rank());
  } else {
    for (int64_t d = 0; d < data; ++d) placement.shares.push_back(even_share(placement.slice.size(), data, d).size());
    const Range within = even_share(placement.slice.size(), data, mesh.data_rank());
    placement.share = {placement.slice.begin + within.begin, placement.slice.begin + within.end};
  }
  return placement;
}

Range world_share(int64_t rows, const parallel::Mesh& mesh) { return even_share(rows, mesh.world().size(), mesh.world().rank()); }

}  // namespace ptq::runner
