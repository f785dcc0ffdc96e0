#include "runner/placement.h"

#include <algorithm>

#include "layers/tensor_slices.h"

namespace ptq::runner {

using parallel::even_share;
using parallel::Range;

namespace {

/// even_share of [begin, end), whose pieces begin at multiples of `unit`; begin is one.
Range even_units(Range range, int64_t unit, int64_t members, int64_t member) {
  const Range share = even_share((range.size() + unit - 1) / unit, members, member);
  return {std::min(range.begin + share.begin * unit, range.end), std::min(range.begin + share.end * unit, range.end)};
}

}  // namespace

Placement place(const layers::LayerSpec& layer, const layers::TensorSpec& tensor, int64_t rows, const parallel::Mesh& mesh, int64_t unit) {
  Placement placement;
  const int64_t data = mesh.shape().data, tensors = mesh.shape().tensor;
  const layers::AttentionHeads* attention = layer.attention();
  const bool is_linear = tensor.linear >= 0 && tensor.split != layers::Split::kWhole;
  const auto slice_of = [&](int64_t rank) {
    return is_linear ? layers::tensor_slice(layer.linears[static_cast<size_t>(tensor.linear)], attention, tensors, rank) : Range{0, rows};
  };
  placement.slice = slice_of(mesh.tensor_rank());
  placement.over_stage = !is_linear || !layers::slices_partition(tensor.split, attention, tensors);
  for (int64_t r = 0; r < tensors; ++r) placement.over_stage = placement.over_stage || slice_of(r).begin % unit != 0;
  const int64_t members = placement.over_stage ? data * tensors : data;
  const Range whole = placement.over_stage ? Range{0, rows} : placement.slice;
  for (int64_t r = 0; r < members; ++r) placement.shares.push_back(even_units(whole, unit, members, r).size());
  placement.share = even_units(whole, unit, members, placement.over_stage ? mesh.stage().rank() : mesh.data_rank());
  return placement;
}

Range world_share(int64_t rows, const parallel::Mesh& mesh, int64_t unit) {
  return even_units({0, rows}, unit, mesh.world().size(), mesh.world().rank());
}

}  // namespace ptq::runner
