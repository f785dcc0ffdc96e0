#include "layers/model_spec.h"

namespace ptq::layers {

std::string LinearSpec::tensor(const std::string& part) const {
  if (!is_stacked()) return module + part;
  return part == ".weight" ? module : module + "_" + part.substr(1);
}

const AttentionHeads* LayerSpec::attention() const {
  for (const auto& block : blocks) {
    if (const auto* attention = std::get_if<AttentionSpec>(&block.body)) return attention;
    if (const auto* latent = std::get_if<LatentAttentionSpec>(&block.body)) return latent;
  }
  return nullptr;
}

const MoeSpec* LayerSpec::moe() const {
  for (const auto& block : blocks)
    if (const auto* moe = std::get_if<MoeSpec>(&block.body)) return moe;
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
  Shape weight{linear.out, linear.in}, bias{linear.out};
  if (linear.is_stacked()) {
    weight = {linear.stack, linear.in, linear.out};
    bias = {linear.stack, linear.out};
  }
  layer.tensors.push_back({linear.tensor(".weight"), weight, linear.split, index, linear.expert});
  if (linear.has_bias) layer.tensors.push_back({linear.tensor(".bias"), bias, linear.split, index, linear.expert});
  layer.linears.push_back(std::move(linear));
  return index;
}

NormSpec add_norm(LayerSpec& layer, NormSpec norm, int64_t size) {
  layer.tensors.push_back({norm.module + ".weight", {size}, Split::kWhole, -1});
  if (norm.kind == NormSpec::Kind::kLayerNorm1p) layer.tensors.push_back({norm.module + ".bias", {size}, Split::kWhole, -1});
  return norm;
}

}  // namespace ptq::layers
