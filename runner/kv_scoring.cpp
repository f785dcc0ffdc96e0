#include "runner/kv_scoring.h"

#include <algorithm>
#include <variant>

#include "kernels/backward_ops.h"
#include "layers/tensor_slices.h"

namespace ptq::runner {

KvScorer::KvScorer(const EvaluationClient& scales, const std::vector<recipes::KvFormat>& formats, const layers::ModelSpec& model,
                   const parallel::Mesh& mesh, layers::Workspace& workspace)
    : scales_(scales), formats_(formats), mesh_(mesh), workspace_(workspace) {
  for (const auto& layer : model.layers)
    if (layer.attention()) blocks_.emplace(layer.index, blocks_.size());
  scores_.assign(blocks_.size(), std::vector<double>(formats.size(), 0.0));
  sums_.assign(formats.size(), std::vector<int64_t>(kernels::kSumBins, 0));
}

bool KvScorer::is_replica(const layers::LayerSpec& layer) const {
  for (const auto& block : layer.blocks)
    if (const auto* attention = std::get_if<layers::AttentionSpec>(&block.body)) {
      const layers::LinearSpec& keys = layer.linears[static_cast<size_t>(attention->k)];
      return layers::distinct_slice(keys, attention, mesh_.shape().tensor, mesh_.tensor_rank()).size() == 0;
    }
  return false;  // every head of latent attention has keys of its own
}

void KvScorer::add_one(recipes::KvFormat format, float scale, const Tensor& x, const Tensor& dx, std::vector<int64_t>& bins) {
  Tensor delta = workspace_.get("kv_score_delta", x.shape(), DType::kF32);
  std::copy_n(x.raw(), x.bytes(), delta.raw());
  recipes::fake_quantize_kv(format, scale, Tensor(), delta);
  kernels::subtract_in_place(delta, x);
  kernels::add_squared_products(dx, delta, bins);
}

void KvScorer::add(const layers::LayerSpec& layer, const Tensor& k, const Tensor& v, const Tensor& dk, const Tensor& dv) {
  if (formats_.empty() || is_replica(layer)) return;
  const recipes::KvScales& scales = scales_.kv_scales(layer.attention()->module);
  for (size_t f = 0; f < formats_.size(); ++f) {
    if (formats_[f] == recipes::KvFormat::kNone) continue;
    add_one(formats_[f], scales.key, k, dk, sums_[f]);
    add_one(formats_[f], scales.value, v, dv, sums_[f]);
  }
}

void KvScorer::layer_done(const layers::LayerSpec& layer) {
  const auto block = blocks_.find(layer.index);
  if (block == blocks_.end()) return;
  for (size_t f = 0; f < formats_.size(); ++f) {
    mesh_.world().all_reduce_sum(std::span<int64_t>(sums_[f]));
    scores_[block->second][f] = kernels::value_of(sums_[f]);
    std::fill(sums_[f].begin(), sums_[f].end(), 0);
  }
}

std::vector<double> KvScorer::scores_of(int64_t layer) const {
  const auto block = blocks_.find(layer);
  return block == blocks_.end() ? std::vector<double>{} : scores_[block->second];
}

void KvScorer::take(int64_t layer, const std::vector<double>& scores) {
  if (const auto block = blocks_.find(layer); block != blocks_.end()) scores_[block->second] = scores;
}

}  // namespace ptq::runner
