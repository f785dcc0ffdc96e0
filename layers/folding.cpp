// What can take the factors of a smoothed input, by the shape of each block.

#include <algorithm>
#include <numeric>

#include "layers/model_spec.h"

namespace ptq::layers {

namespace {

Fold into_norm(const NormSpec& norm) { return {.kind = Fold::Kind::kNorm, .norm = norm}; }

Fold into_rows(int linear, std::vector<int32_t> rows, float power = 1.0f) {
  return {.kind = Fold::Kind::kRows, .linear = linear, .rows = std::move(rows), .power = power};
}

std::vector<int32_t> counting(int64_t first, int64_t count, int32_t step = 1) {
  std::vector<int32_t> rows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) rows[static_cast<size_t>(i)] = static_cast<int32_t>(first + i * step);
  return rows;
}

/// Channels of the attention's output: head by head, of the rows that make the head's values. `first` and `stride` are of a kv head there.
std::vector<int32_t> value_rows(const AttentionHeads& heads, int64_t first, int64_t stride) {
  std::vector<int32_t> rows;
  for (int64_t h = 0; h < heads.heads; ++h)
    for (int64_t d = 0; d < heads.v_head_dim; ++d)
      rows.push_back(static_cast<int32_t>(h / (heads.heads / heads.kv_heads) * stride + first + d));
  return rows;
}

class Groups {
 public:
  explicit Groups(const LayerSpec& layer) : layer_(layer) {}

  void add(int linear, Fold fold, bool feeds_experts = false) {
    const int group = layer_.linears[static_cast<size_t>(linear)].input_group;
    SmoothingGroup smoothing{group, {}, feeds_experts, std::move(fold)};
    for (const int member : layer_.input_group(group))
      if (!layer_.linears[static_cast<size_t>(member)].is_routed()) smoothing.linears.push_back(member);
    found.push_back(std::move(smoothing));
  }
  void add_mlp(const MlpSpec& mlp, const NormSpec& norm, bool feeds_experts) {
    const int64_t width = layer_.linears[static_cast<size_t>(mlp.up)].out;
    // relu(√f·x)² = f·relu(x)².
    add(mlp.down, into_rows(mlp.up, counting(0, width), mlp.kind == MlpSpec::Kind::kReluSquared ? 0.5f : 1.0f));
    add(mlp.up, into_norm(norm), feeds_experts);
  }

  std::vector<SmoothingGroup> found;

 private:
  const LayerSpec& layer_;
};

}  // namespace

std::vector<SmoothingGroup> smoothing_groups(const LayerSpec& layer) {
  Groups groups(layer);
  for (const BlockSpec& block : layer.blocks) {
    if (const auto* attention = std::get_if<AttentionSpec>(&block.body)) {
      groups.add(attention->o, into_rows(attention->v, value_rows(*attention, 0, attention->head_dim)));
      groups.add(attention->q, into_norm(block.norm));
    } else if (const auto* latent = std::get_if<LatentAttentionSpec>(&block.body)) {
      groups.add(latent->o, into_rows(latent->kv_b, value_rows(*latent, latent->nope, latent->nope + latent->v_head_dim)));
      groups.add(latent->kv_b, into_norm(latent->kv_norm));
      if (latent->q_a >= 0) groups.add(latent->q_b, into_norm(latent->q_norm));
      groups.add(latent->kv_a, into_norm(block.norm));
    } else if (const auto* mlp = std::get_if<MlpSpec>(&block.body)) {
      groups.add_mlp(*mlp, block.norm, false);
    } else if (const auto* single = std::get_if<SingleLinearSpec>(&block.body)) {
      groups.add(single->linear, into_norm(block.norm));
    } else {
      const auto& moe = std::get<MoeSpec>(block.body);
      if (moe.shared)
        groups.add_mlp(*moe.shared, block.norm, true);
      else
        groups.found.push_back({moe.input_group, {}, true, into_norm(block.norm)});
    }
  }
  return groups.found;
}

Fold expert_fold(const LayerSpec& layer, int expert) {
  const MoeSpec& moe = *layer.moe();
  const ExpertLinears& linears = moe.experts[static_cast<size_t>(expert)];
  if (moe.activation != MoeSpec::Activation::kSiluGated) return {};  // (up + 1) and a clamp do not scale
  if (linears.gate_up < 0) return into_rows(linears.up, counting(0, moe.intermediate));
  return into_rows(linears.gate_up, moe.interleaved ? counting(1, moe.intermediate, 2) : counting(moe.intermediate, moe.intermediate));
}

}  // namespace ptq::layers
