// A layer's tensors on the mesh: what a rank reads, what it computes with, and the two as weights.

#include <numeric>

#include "kernels/ops.h"
#include "runner/sweep.h"

namespace ptq::runner {

LoadUnit layer_unit(const SweepClient& client, const layers::LayerSpec& layer, const checkpoint::Reader& reader,
                    const parallel::Mesh& mesh) {
  LoadUnit unit;
  for (const auto& spec : client.tensors(layer)) {
    if (spec.expert != layers::kNoExpert) continue;
    const checkpoint::TensorEntry& entry = reader.at(spec.name);
    unit.push_back({&entry, place(layer, spec, entry.rows(), mesh, client.row_unit(layer, spec)).share});
  }
  return unit;
}

LayerTensors place_layer(const SweepClient& client, const layers::LayerSpec& layer, const checkpoint::Reader& reader,
                         const parallel::Mesh& mesh, std::vector<Tensor> shares) {
  LayerTensors tensors;
  tensors.layer = &layer;
  for (auto& spec : client.tensors(layer))
    if (spec.expert == layers::kNoExpert) tensors.specs.push_back(std::move(spec));
  tensors.shares = std::move(shares);
  for (const auto& spec : tensors.specs)
    tensors.placements.push_back(place(layer, spec, reader.at(spec.name).rows(), mesh, client.row_unit(layer, spec)));
  return tensors;
}

void assemble_layer(LayerTensors& tensors, const checkpoint::Reader& reader, const parallel::Mesh& mesh, bool vectors_only) {
  for (size_t i = 0; i < tensors.specs.size(); ++i) {
    if (vectors_only && tensors.specs[i].is_weight()) continue;
    const Placement& placement = tensors.placements[i];
    const Tensor& share = tensors.shares[i];
    Tensor slice = share;
    if (placement.shares.size() > 1) {
      const int64_t rows = std::accumulate(placement.shares.begin(), placement.shares.end(), int64_t{0});
      const checkpoint::TensorEntry& entry = reader.at(tensors.specs[i].name);
      Shape shape = entry.shape;
      if (!shape.empty()) shape[0] = rows;
      slice = Tensor::empty(shape, entry.dtype);
      std::vector<int64_t> bytes;
      for (const int64_t count : placement.shares) bytes.push_back(count * entry.row_bytes());
      (placement.over_stage ? mesh.stage() : mesh.data()).all_gather(share.raw(), bytes, slice.raw());
      if (placement.over_stage && placement.slice.size() != rows) slice = slice.rows(placement.slice.begin, placement.slice.end);
    }
    tensors.slices[tensors.specs[i].name] = slice;
  }
}

layers::LayerWeights SweepClient::weights(const LayerTensors& tensors) const {
  layers::LayerWeights weights;
  weights.linears.resize(tensors.layer->linears.size());
  for (const auto& spec : tensors.specs) {
    const Tensor& slice = tensors.slices.at(spec.name);
    if (spec.linear < 0) {
      weights.vectors[spec.name] = slice;
      continue;
    }
    auto& linear = weights.linears[static_cast<size_t>(spec.linear)];
    (spec.is_weight() ? linear.weight : linear.bias) = slice;
  }
  return weights;
}

void place_expert_tensor(const layers::TensorSpec& spec, const Tensor& stored, layers::LinearWeights& linear) {
  if (!spec.is_weight()) {
    linear.bias = stored.reshaped({stored.numel()});
  } else if (spec.expert != layers::kAllExperts) {
    linear.weight = stored;
  } else {
    linear.weight = Tensor::empty({stored.dim(2), stored.dim(1)}, stored.dtype());
    kernels::transpose(stored.reshaped({stored.dim(1), stored.dim(2)}), linear.weight);
  }
}

layers::ExpertWeights SweepClient::expert_weights(const ExpertChunk& chunk, int expert) const {
  const layers::ExpertLinears& linears = chunk.layer->moe()->experts[static_cast<size_t>(expert)];
  layers::ExpertWeights weights;
  const auto& specs = chunk.specs_of(expert);
  for (size_t i = 0; i < specs.size(); ++i) place_expert_tensor(specs[i], chunk.of(expert)[i], weights.of(linears, specs[i].linear));
  return weights;
}

}  // namespace ptq::runner
