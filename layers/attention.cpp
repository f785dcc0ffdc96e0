#include <cmath>

#include "kernels/ops.h"
#include "layers/block.h"
#include "layers/column_gather.h"
#include "layers/tensor_slices.h"

namespace ptq::layers {

namespace {

/// 1 + temperature · ln(1 + floor((position + 1) / floor)) of every token, [T] f32.
Tensor temperatures(const Block& block, const AttentionSpec& spec) {
  Tensor factors = block.scratch().get("temperatures", {block.batch.tokens()}, DType::kF32);
  const auto* position = block.batch.positions.data<int32_t>();
  for (int64_t t = 0; t < block.batch.tokens(); ++t) {
    const auto steps = static_cast<float>((position[t] + 1) / spec.temperature_floor);
    factors.data<float>()[t] = 1.0f + spec.temperature * std::log1p(steps);
  }
  return factors;
}

/// The sinks of the heads that this rank computes.
Tensor local_sinks(const Block& block, const AttentionSpec& spec) {
  if (spec.sinks.empty()) return Tensor();
  parallel::Communicator& tensor = *block.context.tensor;
  const parallel::Range heads = parallel::even_share(spec.heads, tensor.size(), tensor.rank());
  return block.weights.vectors.at(spec.sinks).rows(heads.begin, heads.end);
}

}  // namespace

Tensor attention(const Block& block, const AttentionSpec& spec, const Tensor& x) {
  const ForwardContext& context = block.context;
  block.observe(spec.q, x);
  Tensor q = block.product(spec.q, x, "q"), k = block.product(spec.k, x, "k"), v = block.product(spec.v, x, "v");
  if (!spec.q_norm.empty()) {
    kernels::head_rms_norm(q, block.weights.vectors.at(spec.q_norm + ".weight"), spec.head_dim, spec.norm_eps);
    kernels::head_rms_norm(k, block.weights.vectors.at(spec.k_norm + ".weight"), spec.head_dim, spec.norm_eps);
  }
  if (spec.rope != AttentionSpec::Rope::kNone) {
    const kernels::RopeShape shape{
        .head_dim = spec.head_dim, .rotary_dim = context.rotary_dim, .interleaved = spec.rope == AttentionSpec::Rope::kInterleaved};
    kernels::rope(q, shape, block.batch.positions, context.rope->cos, context.rope->sin);
    kernels::rope(k, shape, block.batch.positions, context.rope->cos, context.rope->sin);
  }
  if (spec.l2_norm) {
    kernels::head_rms_norm(q, Tensor(), spec.head_dim, spec.norm_eps);
    kernels::head_rms_norm(k, Tensor(), spec.head_dim, spec.norm_eps);
  }
  if (spec.temperature != 0) kernels::scale_rows(q, temperatures(block, spec));
  context.hooks->key_value(block.layer, k, v, block.batch);
  Tensor local = block.scratch().get("attention", {block.batch.tokens(), q.dim(1)}, context.operand);
  kernels::causal_attention(q, k, v, local_sinks(block, spec), block.batch.starts,
                            {.heads = q.dim(1) / spec.head_dim,
                             .kv_heads = k.dim(1) / spec.head_dim,
                             .head_dim = spec.head_dim,
                             .v_head_dim = spec.head_dim,
                             .scale = spec.scale,
                             .window = spec.window,
                             .chunk = spec.chunk},
                            local);
  const Tensor whole = block.gather(spec.q, local, "attention");
  block.observe(spec.o, whole);
  return block.whole_product(spec.o, whole, "block");
}

Tensor latent_attention(const Block& block, const LatentAttentionSpec& spec, const Tensor& x) {
  const ForwardContext& context = block.context;
  const int64_t tokens = block.batch.tokens();
  parallel::Communicator& tensor = *context.tensor;
  const int64_t heads = parallel::even_share(spec.heads, tensor.size(), tensor.rank()).size();

  block.observe(spec.kv_a, x);
  Tensor queries = x;
  if (spec.q_a >= 0) {
    const Tensor latent = block.whole_product(spec.q_a, x, "q_latent");
    queries = block.scratch().get("q_normed", latent.shape(), context.operand);
    apply_norm(spec.q_norm, block.weights.vectors, latent, queries);
    block.observe(spec.q_b, queries);
  }
  Tensor q = block.product(spec.q_b, queries, "q");

  const Tensor both = block.whole_product(spec.kv_a, x, "kv_latent");
  Tensor latent = block.scratch().get("latent", {tokens, spec.latent}, DType::kF32);
  Tensor k_rot = block.scratch().get("k_rot", {tokens, spec.rot}, DType::kF32);
  kernels::slice_columns(both, 0, latent);
  kernels::slice_columns(both, spec.latent, k_rot);
  Tensor normed = block.scratch().get("kv_normed", latent.shape(), context.operand);
  apply_norm(spec.kv_norm, block.weights.vectors, latent, normed);
  block.observe(spec.kv_b, normed);
  const Tensor kv = block.product(spec.kv_b, normed, "kv");

  const auto turn = [&](Tensor& heads_of, int64_t head_dim, int64_t offset) {
    kernels::rope(heads_of, {.head_dim = head_dim, .offset = offset, .rotary_dim = spec.rot, .interleaved = true}, block.batch.positions,
                  context.rope->cos, context.rope->sin);
  };
  turn(q, spec.head_dim, spec.nope);
  turn(k_rot, spec.rot, 0);
  Tensor k = block.scratch().get("k", {tokens, heads * spec.head_dim}, DType::kF32);
  Tensor v = block.scratch().get("v", {tokens, heads * spec.v_head_dim}, DType::kF32);
  kernels::expand_latent(kv, k_rot, heads, spec.nope, k, v);
  context.hooks->key_value(block.layer, k, v, block.batch);

  Tensor local = block.scratch().get("attention", {tokens, heads * spec.v_head_dim}, context.operand);
  kernels::causal_attention(
      q, k, v, Tensor(), block.batch.starts,
      {.heads = heads, .kv_heads = heads, .head_dim = spec.head_dim, .v_head_dim = spec.v_head_dim, .scale = spec.scale}, local);
  std::vector<int64_t> widths;
  for (int r = 0; r < tensor.size(); ++r) widths.push_back(parallel::even_share(spec.heads, tensor.size(), r).size() * spec.v_head_dim);
  const Tensor whole = gather_columns(tensor, local, widths, "attention", block.scratch());
  block.observe(spec.o, whole);
  return block.whole_product(spec.o, whole, "block");
}

}  // namespace ptq::layers
