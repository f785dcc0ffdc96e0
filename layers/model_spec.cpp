#include "layers/model_spec.h"

namespace ptq::layers {

const AttentionSpec* LayerSpec::attention() const {
  for (const auto& block : blocks)
    if (const auto* attention = std::get_if<AttentionSpec>(&block.body)) return attention;
  return nullptr;
}

std::vector<int> LayerSpec::input_group(int group) const {
  std::vector<int> members;
  for (size_t i = 0; i < linears.size(); ++i)
    if (linears[i].input_group == group) members.push_back(static_cast<int>(i));
  return members;
}

int add_linear(LayerSpec& layer, LinearSpec linear) {
  const int index = static_cast<int>(layer.linears.size());
  layer.tensors.push_back({linear.module + ".weight", {linear.out, linear.in}, linear.split, index});
  if (linear.has_bias) layer.tensors.push_back({linear.module + ".bias", {linear.out}, linear.split, index});
  layer.linears.push_back(std::move(linear));
  return index;
}

NormSpec add_norm(LayerSpec& layer, NormSpec norm, int64_t size) {
  layer.tensors.push_back({norm.module + ".weight", {size}, Split::kWhole, -1});
  if (norm.kind == NormSpec::Kind::kLayerNorm1p) layer.tensors.push_back({norm.module + ".bias", {size}, Split::kWhole, -1});
  return norm;
}

}  // namespace ptq::layers
