// Attention in Megatron's layout. Ordinary heads: one array linear_qkv whose rows are, for each group of queries that share a key, the
// queries' heads, the key's, the value's. Latent attention (DeepSeek): the projections down and up, rows as Hugging Face has them.

#include "kernels/core/error.h"
#include "runner/megatron_map.h"

namespace ptq::runner {

namespace {

const layers::LinearSpec& linear_at(const layers::LayerSpec& layer, int index) { return layer.linears[static_cast<size_t>(index)]; }

/// Rows of linear_qkv that are the queries, keys and values, groups in order.
struct QkvRows {
  std::vector<MegatronMap::Run> q, k, v;
  int64_t all = 0;
};

QkvRows qkv_rows(const layers::AttentionSpec& attention) {
  QkvRows rows;
  const int64_t queries = attention.heads / attention.kv_heads * attention.head_dim;
  for (int64_t group = 0; group < attention.kv_heads; ++group) {
    rows.q.push_back({rows.all, queries});
    rows.k.push_back({rows.all + queries, attention.head_dim});
    rows.v.push_back({rows.all + queries + attention.head_dim, attention.head_dim});
    rows.all += queries + 2 * attention.head_dim;
  }
  return rows;
}

}  // namespace

void map_attention(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer, const layers::AttentionSpec& attention) {
  const QkvRows rows = qkv_rows(attention);
  const auto split = [&](const std::string& part) {
    const layers::LinearSpec& q = linear_at(layer, attention.q);
    const SourceArray array = map.any_of(names, {"self_attention.linear_qkv" + part}, q.tensor(part));
    map.check_shape(array, part == ".bias" ? Shape{rows.all} : Shape{rows.all, q.in}, q.tensor(part));
    map.add_rows(q.tensor(part), array, rows.q);
    map.add_rows(linear_at(layer, attention.k).tensor(part), array, rows.k);
    map.add_rows(linear_at(layer, attention.v).tensor(part), array, rows.v);
  };
  split(".weight");
  if (linear_at(layer, attention.q).has_bias) split(".bias");
  const auto add = [&](const std::string& tensor, const std::string& name, int64_t size, bool is_norm) {
    map.add(tensor, map.any_of(names, {"self_attention." + name}, tensor), {size}, is_norm);
  };
  if (!attention.q_norm.empty()) add(attention.q_norm + ".weight", "q_layernorm.weight", attention.head_dim, true);
  if (!attention.k_norm.empty()) add(attention.k_norm + ".weight", "k_layernorm.weight", attention.head_dim, true);
  if (!attention.sinks.empty()) add(attention.sinks, "core_attention.softmax_offset", attention.heads, false);
  map_linear(map, names, linear_at(layer, attention.o), "self_attention.linear_proj");
}

void map_latent_attention(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer,
                          const layers::LatentAttentionSpec& attention) {
  const std::string self = "self_attention.";
  const auto add_norm = [&](const layers::NormSpec& norm, const std::vector<std::string>& places, int64_t size) {
    const std::string tensor = norm.module + ".weight";
    map.add(tensor, map.any_of(names, places, tensor), {size}, true);
  };
  const layers::LinearSpec& kv_a = linear_at(layer, attention.kv_a);
  if (attention.q_a >= 0) {
    const layers::LinearSpec& q_a = linear_at(layer, attention.q_a);
    if (const auto both = map.arrays().find(names, self + "linear_qkv_down_proj.weight")) {
      map.check_shape(*both, {q_a.out + kv_a.out, q_a.in}, q_a.tensor(".weight"));
      map.add_rows(q_a.tensor(".weight"), *both, {{0, q_a.out}});
      map.add_rows(kv_a.tensor(".weight"), *both, {{q_a.out, kv_a.out}});
    } else {
      map_linear(map, names, q_a, self + "linear_q_down_proj");
      map_linear(map, names, kv_a, self + "linear_kv_down_proj");
    }
    add_norm(attention.q_norm, {self + "linear_q_up_proj.layer_norm_weight", self + "q_layernorm.weight"}, q_a.out);
    map_linear(map, names, linear_at(layer, attention.q_b), self + "linear_q_up_proj");
  } else {
    map_linear(map, names, linear_at(layer, attention.q_b), self + "linear_q_proj");
    map_linear(map, names, kv_a, self + "linear_kv_down_proj");
  }
  add_norm(attention.kv_norm, {self + "linear_kv_up_proj.layer_norm_weight", self + "kv_layernorm.weight"}, attention.latent);
  map_linear(map, names, linear_at(layer, attention.kv_b), self + "linear_kv_up_proj");
  map_linear(map, names, linear_at(layer, attention.o), self + "linear_proj");
}

}  // namespace ptq::runner
