#pragma once
// Layers small enough to compute by hand: random tensors for a LayerSpec, and what one tensor rank of several holds of them.

#include <cmath>
#include <map>
#include <string>

#include "layers/layer.h"
#include "layers/models/models.h"
#include "layers/tensor_slices.h"
#include "tests/support/reference_ops.h"

namespace ptq::test {

inline layers::ModelSpec model_of(const std::string& json) {
  return layers::describe_model(layers::Config(nlohmann::ordered_json::parse(json), "config.json"));
}

/// Tensors by name: weights keep the size of what they multiply, norms are near 1 (LayerNorm1p stores what it adds to 1), biases are not
/// small.
inline std::map<std::string, Tensor> random_layer(const layers::LayerSpec& layer, DType dtype, uint64_t seed) {
  std::map<std::string, Tensor> tensors;
  for (const auto& spec : layer.tensors) {
    const float deviation = spec.shape.size() == 2 ? 1.0f / std::sqrt(static_cast<float>(spec.shape[1])) : 0.5f;
    tensors[spec.name] = random_tensor(spec.shape, dtype, ++seed, deviation);
  }
  return tensors;
}

/// What tensor rank `rank` of `ranks` computes with; of routed experts nothing.
inline layers::LayerWeights slice_of(const layers::LayerSpec& layer, const std::map<std::string, Tensor>& tensors, int64_t ranks,
                                     int64_t rank) {
  layers::LayerWeights weights;
  weights.linears.resize(layer.linears.size());
  for (const auto& spec : layer.tensors) {
    if (spec.expert != layers::kNoExpert) continue;
    const Tensor& whole = tensors.at(spec.name);
    if (spec.linear < 0) {
      weights.vectors[spec.name] = whole;
      continue;
    }
    const auto rows = layers::tensor_slice(layer.linears[static_cast<size_t>(spec.linear)], layer.attention(), ranks, rank);
    auto& linear = weights.linears[static_cast<size_t>(spec.linear)];
    (spec.shape.size() == 2 ? linear.weight : linear.bias) = whole.rows(rows.begin, rows.end);
  }
  return weights;
}

}  // namespace ptq::test
