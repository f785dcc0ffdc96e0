#include "kernels/backward_ops.h"
#include "kernels/ops.h"
#include "layers/backward_block.h"
#include "layers/tensor_slices.h"

namespace ptq::layers {

namespace {

/// By what the softmax read: q [T, N·D], and k [T, N·D], v [T, N·Dv] by query head, N heads of this rank.
struct HeadGradients {
  Tensor q, k, v;
};

/// output [T, N·Dv]: the gradient by what the heads of this rank made.
HeadGradients heads_backward(const BlockGradient& back, const Tensor& output) {
  const Trace::Attended& attended = back.trace().attended;
  const kernels::AttentionShape& shape = attended.shape;
  require(output.dim(1) == shape.heads * shape.v_head_dim, "the columns that o reads on this rank are not those of its heads");
  HeadGradients by{back.buffer("q", shape.heads * shape.head_dim), back.buffer("k", shape.heads * shape.head_dim),
                   back.buffer("v", shape.heads * shape.v_head_dim)};
  kernels::causal_attention_backward(attended.q, attended.k, attended.v, attended.sinks, back.block.batch.starts, shape, output, by.q, by.k,
                                     by.v);
  return by;
}

/// The query heads of each kv head added up in ascending order: by_head [T, N·D] -> [T, O of this rank] of `linear`, which is k or v. Where
/// ranks share kv heads, the query heads of all are gathered first. Collective over the tensor group.
Tensor by_kv_heads(const BlockGradient& back, const AttentionSpec& spec, int linear, const Tensor& by_head, const std::string& name) {
  const parallel::Communicator& tensor = *back.block.context.tensor;
  const LinearSpec& kv = back.block.layer.linears[static_cast<size_t>(linear)];
  const parallel::Range mine = tensor_slice(kv, &spec, tensor.size(), tensor.rank());
  Tensor sums = back.buffer(name, mine.size());
  if (slices_partition(kv.split, &spec, tensor.size())) {
    kernels::add_query_heads(by_head, mine.size() / spec.head_dim, spec.head_dim, sums);
    return sums;
  }
  const Tensor all_heads = back.gather(by_head, spec.heads * spec.head_dim, "by_head");
  Tensor all_sums = back.buffer("all_kv_heads", kv.out);
  kernels::add_query_heads(all_heads, spec.kv_heads, spec.head_dim, all_sums);
  kernels::slice_columns(all_sums, mine.begin, sums);
  return sums;
}

/// dk, dv by what the cache holds.
void show_key_value(const BlockGradient& back, const Tensor& dk, const Tensor& dv) {
  const Trace::Attended& attended = back.trace().attended;
  back.context.hooks->key_value_gradient(back.block.layer, attended.k, attended.v, dk, dv);
}

void turn_back(const BlockGradient& back, Tensor& d, const kernels::RopeShape& shape) {
  const RopeTables& tables = *back.block.context.rope;
  kernels::rope_backward(d, shape, back.block.batch.positions, tables.cos, tables.sin);
}

}  // namespace

Tensor attention_backward(const BlockGradient& back, const AttentionSpec& spec, const Tensor& dy) {
  const Trace& trace = back.trace();
  HeadGradients by = heads_backward(back, back.from_whole(spec.o, dy, "attended"));
  Tensor k = by_kv_heads(back, spec, spec.k, by.k, "k_sums");
  const Tensor v = by_kv_heads(back, spec, spec.v, by.v, "v_sums");
  show_key_value(back, k, v);
  if (spec.temperature != 0) kernels::scale_rows(by.q, trace.temperatures);
  if (spec.l2_norm) {
    kernels::head_rms_norm_backward(trace.q_turned, Tensor(), spec.head_dim, spec.norm_eps, by.q);
    kernels::head_rms_norm_backward(trace.k_turned, Tensor(), spec.head_dim, spec.norm_eps, k);
  }
  if (spec.rope != AttentionSpec::Rope::kNone) {
    turn_back(back, by.q, rope_shape(spec, back.block.context));
    turn_back(back, k, rope_shape(spec, back.block.context));
  }
  if (!spec.q_norm.empty()) {
    const auto norm_back = [&](int linear, const std::string& norm, Tensor& d) {
      kernels::head_rms_norm_backward(trace.products.at(linear).y, back.vectors().at(norm + ".weight"), spec.head_dim, spec.norm_eps, d);
    };
    norm_back(spec.q, spec.q_norm, by.q);
    norm_back(spec.k, spec.k_norm, k);
  }
  Tensor read = back.from_slice(spec.q, by.q, "read");
  kernels::add_in_place(read, back.from_slice(spec.k, k, "read_more"));
  kernels::add_in_place(read, back.from_slice(spec.v, v, "read_more"));
  return read;
}

Tensor latent_attention_backward(const BlockGradient& back, const LatentAttentionSpec& spec, const Tensor& dy) {
  const Trace& trace = back.trace();
  HeadGradients by = heads_backward(back, back.from_whole(spec.o, dy, "attended"));
  const int64_t heads = trace.attended.shape.heads;
  show_key_value(back, by.k, by.v);

  turn_back(back, by.q, rope_shape(spec, spec.head_dim, spec.nope));
  Tensor read = back.from_slice(spec.q_b, by.q, "queries");
  if (spec.q_a >= 0) {
    Tensor q_latent = back.gather(read, trace.q_latent.dim(1), "q_latent");
    norm_backward(spec.q_norm, back.vectors(), trace.q_latent, q_latent, q_latent);
    read = back.from_whole(spec.q_a, q_latent, "read");
  }

  Tensor kv = back.buffer("kv", heads * (spec.nope + spec.v_head_dim)), rot_by_head = back.buffer("rot_by_head", heads * spec.rot);
  kernels::expand_latent_backward(by.k, by.v, heads, spec.nope, kv, rot_by_head);
  Tensor latent = back.gather(back.from_slice(spec.kv_b, kv, "latent"), spec.latent, "latent");
  norm_backward(spec.kv_norm, back.vectors(), trace.latent, latent, latent);
  Tensor rot = back.buffer("rot", spec.rot);
  kernels::add_query_heads(back.gather(rot_by_head, spec.heads * spec.rot, "rot_by_head"), 1, spec.rot, rot);
  turn_back(back, rot, rope_shape(spec, spec.rot, 0));
  Tensor both = back.buffer("latent_and_rot", spec.latent + spec.rot);
  kernels::place_columns(latent, 0, both);
  kernels::place_columns(rot, spec.latent, both);
  kernels::add_in_place(read, back.from_whole(spec.kv_a, both, "read_more"));
  return read;
}

}  // namespace ptq::layers
