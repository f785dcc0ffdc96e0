// Panels as in attention.cpp: a query in each lane. A task owns one head of one sequence and walks its queries in blocks. The scores of a
// block with all keys that it sees make a strip; there the softmax is one pass, and the gradients are three more products over it.

#include <numeric>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/cpu_ops.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kQueriesPerBlock = 64;
constexpr int64_t kKeysPerBlock = 112;  // 8 full tiles of 14 keys
static_assert(kQueriesPerBlock <= kPanelDepth, "the queries of a block are one step of depth of the products that sum over them");

/// The memory of one task: about (2·kQueriesPerBlock + D + Dv) floats for every token of its sequence.
struct Strip {
  int64_t keys;                                     ///< at most
  float *queries, *douts;                           ///< [panel][D or Dv][P]: of the block, a query in each lane
  float *query_rows, *dout_rows;                    ///< [panel of dims][kQueriesPerBlock][P]: a dim in each lane
  float *scores, *gradients;                        ///< [panel][keys][P]
  float *weight_rows, *gradient_rows;               ///< [kKeysPerBlock][kXStride]: a row for each key, a column for each query
  float *dq, *dk, *dv;                              ///< dq [panel][D][P]; dk, dv [panel of dims][T][P]
  float *maximum, *sum, *dots, *correction, *tile;  ///< the first four [panel][P]
};

int64_t rounded_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

/// Lays the strip out in the thread's scratch, for a sequence of `tokens`.
Strip lay_out(Scratch& scratch, int64_t width, int64_t tokens, int64_t keys, const AttentionShape& shape) {
  const int64_t dims = rounded_up(shape.head_dim, width), v_dims = rounded_up(shape.v_head_dim, width);
  Strip strip{};
  strip.keys = keys;
  const std::vector<std::pair<float**, int64_t>> parts = {{&strip.queries, kQueriesPerBlock * shape.head_dim},
                                                          {&strip.douts, kQueriesPerBlock * shape.v_head_dim},
                                                          {&strip.query_rows, kQueriesPerBlock * dims},
                                                          {&strip.dout_rows, kQueriesPerBlock * v_dims},
                                                          {&strip.scores, kQueriesPerBlock * keys},
                                                          {&strip.gradients, kQueriesPerBlock * keys},
                                                          {&strip.weight_rows, kKeysPerBlock * kXStride},
                                                          {&strip.gradient_rows, kKeysPerBlock * kXStride},
                                                          {&strip.dq, kQueriesPerBlock * shape.head_dim},
                                                          {&strip.dk, tokens * dims},
                                                          {&strip.dv, tokens * v_dims},
                                                          {&strip.maximum, kQueriesPerBlock},
                                                          {&strip.sum, kQueriesPerBlock},
                                                          {&strip.dots, kQueriesPerBlock},
                                                          {&strip.correction, kQueriesPerBlock},
                                                          {&strip.tile, kMaxTileTokens * kXStride}};
  int64_t floats = 0;
  for (const auto& [part, count] : parts) floats += count;
  float* memory = scratch.floats(floats);
  for (const auto& [part, count] : parts) {
    *part = memory;
    memory += count;
  }
  return strip;
}

/// One head of one sequence: pointers to the head's columns in the sequence's first row, and the strides of rows.
struct Head {
  int64_t tokens;
  const float *q, *k, *v, *dout, *sink;  ///< sink may be null
  float *dq, *dk, *dv;
  int64_t q_stride, k_stride, v_stride, out_stride;  ///< q_stride: of dq and dk too; out_stride: of dout and dv
};

/// rows [count][dim], `stride` floats apart, times `factor`, as [panel of dims][kQueriesPerBlock][P]; dims beyond the last are 0.
void pack_dims(const float* rows, int64_t stride, int64_t count, int64_t dim, float factor, int64_t width, float* packed) {
  for (int64_t d = 0; d < dim; d += width)
    for (int64_t row = 0; row < count; ++row) {
      float* const to = packed + d * kQueriesPerBlock + row * width;
      const int64_t columns = std::min(width, dim - d);
      for (int64_t c = 0; c < columns; ++c) to[c] = factor * rows[row * stride + d + c];
      std::fill(to + columns, to + width, 0.0f);
    }
}

/// And the sums over queries back: out [tokens][dim], rows `stride` floats apart, from [panel of dims][tokens][P].
void unpack_dims(const float* packed, int64_t tokens, int64_t dim, int64_t width, float* out, int64_t stride) {
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t d = 0; d < dim; d += width)
      std::copy_n(packed + d * tokens + token * width, std::min(width, dim - d), out + token * stride + d);
}

/// Fills the panels of queries [first, last) and the rows of them; queries are scaled.
void pack_queries(const Head& head, const AttentionShape& shape, const PanelKernels& kernels, const Strip& strip, int64_t first,
                  int64_t last) {
  const int64_t width = kernels.width, dim = shape.head_dim, v_dim = shape.v_head_dim;
  for (int64_t query = first; query < last; query += width) {
    const int rows = static_cast<int>(std::min(width, last - query));
    kernels.pack_f32(head.q + query * head.q_stride, head.q_stride, rows, dim, strip.queries + (query - first) * dim);
    kernels.pack_f32(head.dout + query * head.out_stride, head.out_stride, rows, v_dim, strip.douts + (query - first) * v_dim);
  }
  const int64_t lanes = rounded_up(last - first, width);
  for (int64_t i = 0; i < lanes * dim; ++i) strip.queries[i] *= shape.scale;
  pack_dims(head.q + first * head.q_stride, head.q_stride, last - first, dim, shape.scale, width, strip.query_rows);
  pack_dims(head.dout + first * head.out_stride, head.out_stride, last - first, v_dim, 1.0f, width, strip.dout_rows);
}

/// sums [panel of dims][tokens][P] += x · rows for keys [key, key + keys): x [keys][kXStride] with a column for each of `queries` queries.
void add_over_queries(const PanelKernels& kernels, const float* x, const float* rows, int64_t queries, int64_t dim, int64_t tokens,
                      int64_t key, int64_t keys, float* sums) {
  for (int64_t row = 0; row < keys; row += kernels.tokens)
    for (int64_t d = 0; d < dim; d += kernels.width)
      kernels.tile(static_cast<int>(std::min<int64_t>(kernels.tokens, keys - row)), x + row * kXStride, rows + d * kQueriesPerBlock,
                   queries, sums + d * tokens + (key + row) * kernels.width, kernels.width, false);
}

/// Queries [first, last): writes their dq, adds to dk and dv of the strip.
void add_queries(const Head& head, const AttentionShape& shape, const PanelKernels& kernels, const Strip& strip, int64_t first,
                 int64_t last) {
  const int64_t width = kernels.width, dim = shape.head_dim, v_dim = shape.v_head_dim;
  const int64_t panels = (last - first + width - 1) / width, panel_keys = strip.keys * width;
  const int64_t first_key = oldest_key(shape, first), keys = last - first_key;
  pack_queries(head, shape, kernels, strip, first, last);
  multiply_rows(kernels, head.k + first_key * head.k_stride, head.k_stride, keys, dim, strip.queries, panels, strip.tile, strip.scores,
                panel_keys);
  multiply_rows(kernels, head.v + first_key * head.v_stride, head.v_stride, keys, v_dim, strip.douts, panels, strip.tile, strip.gradients,
                panel_keys);

  // A sink is a score before all keys, of weight e^0, as in attention.cpp.
  std::fill_n(strip.maximum, panels * width, head.sink ? *head.sink : kMaskedScore);
  std::fill_n(strip.sum, panels * width, head.sink ? 1.0f : 0.0f);
  std::fill_n(strip.dq, panels * dim * width, 0.0f);
  for (int64_t p = 0; p < panels; ++p) {
    int64_t oldest[kMaxPanelWidth];
    for (int64_t lane = 0; lane < width; ++lane) oldest[lane] = oldest_key(shape, first + p * width + lane);
    float* const weights = strip.scores + p * panel_keys;
    kernels.softmax(weights, keys, first_key, first + p * width, oldest, strip.maximum + p * width, strip.sum + p * width,
                    strip.correction + p * width);
    kernels.dot_columns(weights, strip.gradients + p * panel_keys, keys, strip.dots + p * width);
  }

  for (int64_t key = 0; key < keys; key += kKeysPerBlock) {
    const int64_t count = std::min(kKeysPerBlock, keys - key);
    const float* const k = head.k + (first_key + key) * head.k_stride;
    for (int64_t p = 0; p < panels; ++p) {
      float* const gradients = strip.gradients + p * panel_keys + key * width;
      kernels.softmax_gradient(strip.scores + p * panel_keys + key * width, gradients, count, strip.sum + p * width, strip.dots + p * width,
                               strip.weight_rows + p * width, strip.gradient_rows + p * width);
      for (int64_t d = 0; d < dim; d += kernels.tokens)
        kernels.tile_of_columns(static_cast<int>(std::min<int64_t>(kernels.tokens, dim - d)), k + d, head.k_stride, gradients, count,
                                strip.dq + (p * dim + d) * width, width);
    }
    add_over_queries(kernels, strip.gradient_rows, strip.query_rows, last - first, dim, head.tokens, first_key + key, count, strip.dk);
    add_over_queries(kernels, strip.weight_rows, strip.dout_rows, last - first, v_dim, head.tokens, first_key + key, count, strip.dv);
  }

  for (int64_t query = first; query < last; ++query) {
    const int64_t p = (query - first) / width, lane = (query - first) % width;
    float* const to = head.dq + query * head.q_stride;
    for (int64_t d = 0; d < dim; ++d) to[d] = shape.scale * strip.dq[(p * dim + d) * width + lane];
  }
}

void attend_backward(const Head& head, const AttentionShape& shape, const PanelKernels& kernels) {
  const int64_t dims = rounded_up(shape.head_dim, kernels.width), v_dims = rounded_up(shape.v_head_dim, kernels.width);
  int64_t keys = 0;
  for (int64_t first = 0; first < head.tokens; first += kQueriesPerBlock)
    keys = std::max(keys, std::min(first + kQueriesPerBlock, head.tokens) - oldest_key(shape, first));
  thread_local Scratch scratch;
  const Strip strip = lay_out(scratch, kernels.width, head.tokens, keys, shape);
  std::fill_n(strip.dk, head.tokens * dims, 0.0f);
  std::fill_n(strip.dv, head.tokens * v_dims, 0.0f);
  for (int64_t first = 0; first < head.tokens; first += kQueriesPerBlock)
    add_queries(head, shape, kernels, strip, first, std::min(first + kQueriesPerBlock, head.tokens));
  unpack_dims(strip.dk, head.tokens, shape.head_dim, kernels.width, head.dk, head.q_stride);
  unpack_dims(strip.dv, head.tokens, shape.v_head_dim, kernels.width, head.dv, head.out_stride);
}

}  // namespace

void causal_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                               const AttentionShape& shape, const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv) {
  check_attention(q, k, v, sinks, starts, shape, dout);
  require(dq.shape() == q.shape() && dk.shape() == q.shape() && dv.shape() == dout.shape(),
          "attention backward: dq and dk are not [T, N·D], or dv not [T, N·Dv]");
  Scratch scratch;
  const float* const sink = sinks.defined() ? widened(sinks, scratch) : nullptr;
  const float *const queries = q.data<float>(), *const keys = k.data<float>(), *const values = v.data<float>();
  const float* const douts = dout.data<float>();
  float *const dqs = dq.data<float>(), *const dks = dk.data<float>(), *const dvs = dv.data<float>();
  const PanelKernels& kernels = panel_kernels();

  // The longest sequences first: the threads then end together.
  std::vector<size_t> sequences(starts.size() - 1);
  std::iota(sequences.begin(), sequences.end(), size_t{0});
  std::stable_sort(sequences.begin(), sequences.end(),
                   [&](size_t a, size_t b) { return starts[a + 1] - starts[a] > starts[b + 1] - starts[b]; });
  parallel_for(static_cast<int64_t>(sequences.size()) * shape.heads, [&](int64_t i) {
    const size_t sequence = sequences[static_cast<size_t>(i / shape.heads)];
    const int64_t head = i % shape.heads, kv_head = head / (shape.heads / shape.kv_heads), begin = starts[sequence];
    const int64_t q_at = begin * q.dim(1) + head * shape.head_dim, out_at = begin * dout.dim(1) + head * shape.v_head_dim;
    attend_backward({.tokens = starts[sequence + 1] - begin,
                     .q = queries + q_at,
                     .k = keys + begin * k.dim(1) + kv_head * shape.head_dim,
                     .v = values + begin * v.dim(1) + kv_head * shape.v_head_dim,
                     .dout = douts + out_at,
                     .sink = sink ? sink + head : nullptr,
                     .dq = dqs + q_at,
                     .dk = dks + q_at,
                     .dv = dvs + out_at,
                     .q_stride = q.dim(1),
                     .k_stride = k.dim(1),
                     .v_stride = v.dim(1),
                     .out_stride = dout.dim(1)},
                    shape, kernels);
  });
}

}  // namespace ptq::kernels::cpu
