#include <cmath>

#include "kernels/ops.h"
#include "layers/block.h"
#include "layers/column_gather.h"
#include "layers/tensor_slices.h"

namespace ptq::layers {

namespace {

/// 1 + temperature · ln(1 + floor((position + 1) / floor)) of every token, [T] f32.
Tensor temperatures(const Block& block, const AttentionSpec& spec) {
  Tensor factors = block.buffer("temperatures", {block.batch.tokens()}, DType::kF32);
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

kernels::RopeShape rope_shape(const AttentionSpec& spec, const ForwardContext& context) {
  return {.head_dim = spec.head_dim, .rotary_dim = context.rotary_dim, .interleaved = spec.rope == AttentionSpec::Rope::kInterleaved};
}

kernels::RopeShape rope_shape(const LatentAttentionSpec& spec, int64_t head_dim, int64_t offset) {
  return {.head_dim = head_dim, .offset = offset, .rotary_dim = spec.rot, .interleaved = true};
}

Tensor attention(const Block& block, const AttentionSpec& spec, const Tensor& x) {
  const ForwardContext& context = block.context;
  block.observe(spec.q, x);
  Tensor q = block.changeable(block.product(spec.q, x, "q"), "q_heads"), k = block.changeable(block.product(spec.k, x, "k"), "k_heads");
  Tensor v = block.product(spec.v, x, "v");
  if (!spec.q_norm.empty()) {
    kernels::head_rms_norm(q, block.weights.vectors.at(spec.q_norm + ".weight"), spec.head_dim, spec.norm_eps);
    kernels::head_rms_norm(k, block.weights.vectors.at(spec.k_norm + ".weight"), spec.head_dim, spec.norm_eps);
  }
  if (spec.rope != AttentionSpec::Rope::kNone) {
    const kernels::RopeShape shape = rope_shape(spec, context);
    kernels::rope(q, shape, block.batch.positions, context.rope->cos, context.rope->sin);
    kernels::rope(k, shape, block.batch.positions, context.rope->cos, context.rope->sin);
  }
  if (spec.l2_norm) {
    if (block.trace) {
      block.trace->q_turned = q;
      block.trace->k_turned = k;
    }
    q = block.changeable(q, "q_normed");
    k = block.changeable(k, "k_normed");
    kernels::head_rms_norm(q, Tensor(), spec.head_dim, spec.norm_eps);
    kernels::head_rms_norm(k, Tensor(), spec.head_dim, spec.norm_eps);
  }
  const Tensor factors = spec.temperature != 0 ? temperatures(block, spec) : Tensor();
  if (factors.defined()) kernels::scale_rows(q, factors);
  context.hooks->key_value(block.layer, k, v, block.batch);
  Tensor local = block.buffer("attention", {block.batch.tokens(), q.dim(1)}, context.operand);
  const kernels::AttentionShape shape{.heads = q.dim(1) / spec.head_dim,
                                      .kv_heads = k.dim(1) / spec.head_dim,
                                      .head_dim = spec.head_dim,
                                      .v_head_dim = spec.head_dim,
                                      .scale = spec.scale,
                                      .window = spec.window,
                                      .chunk = spec.chunk};
  const Tensor sinks = local_sinks(block, spec);
  kernels::causal_attention(q, k, v, sinks, block.batch.starts, shape, local);
  if (block.trace) {
    block.trace->attended = {q, k, v, sinks, shape};
    block.trace->temperatures = factors;
  }
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
    queries = block.buffer("q_normed", latent.shape(), context.operand);
    apply_norm(spec.q_norm, block.weights.vectors, latent, queries);
    if (block.trace) block.trace->q_latent = latent;
    block.observe(spec.q_b, queries);
  }
  Tensor q = block.changeable(block.product(spec.q_b, queries, "q"), "q_heads");

  const Tensor both = block.whole_product(spec.kv_a, x, "kv_latent");
  Tensor latent = block.buffer("latent", {tokens, spec.latent}, DType::kF32);
  Tensor k_rot = block.buffer("k_rot", {tokens, spec.rot}, DType::kF32);
  kernels::slice_columns(both, 0, latent);
  kernels::slice_columns(both, spec.latent, k_rot);
  Tensor normed = block.buffer("kv_normed", latent.shape(), context.operand);
  apply_norm(spec.kv_norm, block.weights.vectors, latent, normed);
  block.observe(spec.kv_b, normed);
  const Tensor kv = block.product(spec.kv_b, normed, "kv");

  const auto turn = [&](Tensor& heads_of, int64_t head_dim, int64_t offset) {
    kernels::rope(heads_of, rope_shape(spec, head_dim, offset), block.batch.positions, context.rope->cos, context.rope->sin);
  };
  turn(q, spec.head_dim, spec.nope);
  turn(k_rot, spec.rot, 0);
  Tensor k = block.buffer("k", {tokens, heads * spec.head_dim}, DType::kF32);
  Tensor v = block.buffer("v", {tokens, heads * spec.v_head_dim}, DType::kF32);
  kernels::expand_latent(kv, k_rot, heads, spec.nope, k, v);
  context.hooks->key_value(block.layer, k, v, block.batch);

  Tensor local = block.buffer("attention", {tokens, heads * spec.v_head_dim}, context.operand);
  const kernels::AttentionShape shape{
      .heads = heads, .kv_heads = heads, .head_dim = spec.head_dim, .v_head_dim = spec.v_head_dim, .scale = spec.scale};
  kernels::causal_attention(q, k, v, Tensor(), block.batch.starts, shape, local);
  if (block.trace) {
    block.trace->attended = {q, k, v, Tensor(), shape};
    block.trace->latent = latent;
  }
  std::vector<int64_t> widths;
  for (int r = 0; r < tensor.size(); ++r) widths.push_back(parallel::even_share(spec.heads, tensor.size(), r).size() * spec.v_head_dim);
  const Tensor whole = gather_columns(tensor, local, widths, block.prefix + "attention", block.scratch());
  block.observe(spec.o, whole);
  return block.whole_product(spec.o, whole, "block");
}

}  // namespace ptq::layers
