// Queries lie in the lanes of panels, keys and dims are walked in order: scores[key][query] and sums[dim][query] are tiles of the same
// product as matmul's, the softmax is vertical, and no value depends on which queries share a panel.

#include <algorithm>
#include <array>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kKeysPerBlock = 112;  // 8 full tiles of 14 keys
constexpr int64_t kQueriesPerTask = 64;

struct Attention {
  const float *q, *k, *v;
  Tensor& out;
  const AttentionShape& shape;
  const PanelKernels& kernels;
};

/// The state of the panels of one task, all in one piece of scratch.
struct Panels {
  int64_t width, count;               ///< queries per panel, panels
  float* queries;                     ///< [panel][D][width], scaled
  float* scores;                      ///< [panel][kKeysPerBlock][width]
  float* sums;                        ///< [panel][Dv][width]
  float *maximum, *sum, *correction;  ///< [panel][width]
  float* x_panel;
};

Panels lay_out(float* memory, int64_t width, int64_t count, const AttentionShape& shape) {
  Panels panels{width, count, memory, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  panels.scores = panels.queries + count * shape.head_dim * width;
  panels.sums = panels.scores + count * kKeysPerBlock * width;
  panels.maximum = panels.sums + count * shape.v_head_dim * width;
  panels.sum = panels.maximum + count * width;
  panels.correction = panels.sum + count * width;
  panels.x_panel = panels.correction + count * width;
  return panels;
}

/// Attention of queries [first, last) of one sequence and head. Pointers: the head's column in the sequence's first row. sink may be null.
void attend(const Attention& attention, const float* q, const float* k, const float* v, const float* sink, std::byte* out, int64_t first,
            int64_t last) {
  const AttentionShape& shape = attention.shape;
  const PanelKernels& kernels = attention.kernels;
  const int64_t width = kernels.width, dim = shape.head_dim, v_dim = shape.v_head_dim;
  const int64_t q_stride = shape.heads * dim, k_stride = shape.kv_heads * dim, v_stride = shape.kv_heads * v_dim;
  thread_local Scratch scratch;
  constexpr int64_t kMaxPanels = kQueriesPerTask / 16;
  const int64_t floats = kMaxPanels * kMaxPanelWidth * (dim + kKeysPerBlock + v_dim + 3) + kMaxTileTokens * kXStride;
  const Panels panels = lay_out(scratch.floats(floats), width, (last - first + width - 1) / width, shape);

  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t query = first + p * width;
    kernels.pack_f32(q + query * q_stride, q_stride, static_cast<int>(std::min(width, last - query)), dim,
                     panels.queries + p * dim * width);
  }
  for (int64_t i = 0; i < panels.count * dim * width; ++i) panels.queries[i] *= shape.scale;
  // A sink is the score that every query sees before its keys: so far the largest, of weight e^0.
  std::fill_n(panels.maximum, panels.count * width, sink ? *sink : kMaskedScore);
  std::fill_n(panels.sum, panels.count * width, sink ? 1.0f : 0.0f);
  std::fill_n(panels.sums, panels.count * v_dim * width, 0.0f);

  std::array<int64_t, kQueriesPerTask> oldest;
  for (int64_t i = 0; i < panels.count * width; ++i) oldest[static_cast<size_t>(i)] = oldest_key(shape, first + i);

  // Keys that no query of the task sees weigh exactly 0, so leaving them out changes no bit.
  const int64_t first_key = oldest.front();
  for (int64_t block = first_key / kKeysPerBlock * kKeysPerBlock; block < last; block += kKeysPerBlock) {
    const int64_t begin = std::max(block, first_key), end = std::min(block + kKeysPerBlock, last);
    multiply_rows(kernels, k + begin * k_stride, k_stride, end - begin, dim, panels.queries, panels.count, panels.x_panel,
                  panels.scores + (begin - block) * width, kKeysPerBlock * width);
    for (int64_t p = 0; p < panels.count; ++p) {
      float* const weights = panels.scores + (p * kKeysPerBlock + begin - block) * width;
      float* const correction = panels.correction + p * width;
      float* const sums = panels.sums + p * v_dim * width;
      kernels.softmax(weights, end - begin, begin, first + p * width, oldest.data() + p * width, panels.maximum + p * width,
                      panels.sum + p * width, correction);
      if (std::any_of(correction, correction + width, [](float factor) { return factor != 1.0f; }))
        kernels.scale_columns(sums, v_dim, correction);
      for (int64_t d = 0; d < v_dim; d += kernels.tokens)
        kernels.tile_of_columns(static_cast<int>(std::min<int64_t>(kernels.tokens, v_dim - d)), v + begin * v_stride + d, v_stride, weights,
                                end - begin, sums + d * width, width);
    }
  }

  float* const row = panels.x_panel;
  const int64_t out_stride = attention.out.row_bytes();
  for (int64_t query = first; query < last; ++query) {
    const int64_t p = (query - first) / width, lane = (query - first) % width;
    const float total = panels.sum[p * width + lane];
    for (int64_t d = 0; d < v_dim; ++d) row[d] = panels.sums[(p * v_dim + d) * width + lane] / total;
    std::byte* const to = out + query * out_stride;
    if (attention.out.dtype() == DType::kBF16)
      row_kernels().narrow(row, v_dim, reinterpret_cast<uint16_t*>(to));
    else
      std::copy_n(row, v_dim, reinterpret_cast<float*>(to));
  }
}

}  // namespace

void causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, const std::vector<int64_t>& starts,
                      const AttentionShape& shape, Tensor& out) {
  check_attention(q, k, v, sinks, starts, shape, out);
  require(shape.v_head_dim <= kMaxTileTokens * kXStride, "attention: a head of v is too wide");
  require(out.dtype() == DType::kBF16 || out.dtype() == DType::kF32, "attention: out is neither bf16 nor f32");

  struct Task {
    int64_t sequence, query;
  };
  std::vector<Task> tasks;
  for (size_t s = 0; s + 1 < starts.size(); ++s)
    for (int64_t query = 0; query < starts[s + 1] - starts[s]; query += kQueriesPerTask) tasks.push_back({static_cast<int64_t>(s), query});
  // The queries that see most keys first: the threads then end together.
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.query > b.query; });

  Scratch scratch;
  const float* const sink = sinks.defined() ? widened(sinks, scratch) : nullptr;
  const Attention attention{q.data<float>(), k.data<float>(), v.data<float>(), out, shape, panel_kernels()};
  const int64_t group = shape.heads / shape.kv_heads;
  parallel_for(static_cast<int64_t>(tasks.size()) * shape.heads, [&](int64_t i) {
    const auto [sequence, query] = tasks[static_cast<size_t>(i / shape.heads)];
    const int64_t head = i % shape.heads, begin = starts[static_cast<size_t>(sequence)], end = starts[static_cast<size_t>(sequence) + 1];
    attend(attention, attention.q + begin * q.dim(1) + head * shape.head_dim,
           attention.k + begin * k.dim(1) + head / group * shape.head_dim, attention.v + begin * v.dim(1) + head / group * shape.v_head_dim,
           sink ? sink + head : nullptr, out.raw() + begin * out.row_bytes() + head * shape.v_head_dim * dtype_bytes(out.dtype()), query,
           std::min(query + kQueriesPerTask, end - begin));
  });
}

}  // namespace ptq::kernels::cpu
