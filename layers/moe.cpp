#include "layers/moe.h"

#include <algorithm>

#include "kernels/ops.h"

namespace ptq::layers {

namespace {

/// linear(x), [n, O] f32 in the buffer `name`.
Tensor product(const LayerSpec& layer, int linear, const LinearWeights& weights, const Tensor& x, const std::string& name,
               const ExpertContext& context) {
  const Tensor input = context.hooks->quantized_input(layer, linear, x);
  Tensor y = context.workspace->get(name, {x.dim(0), weights.weight.dim(0)}, DType::kF32);
  kernels::matmul(input, weights.weight, weights.bias, y);
  return y;
}

/// Computes gate, up and inner of a piece that has its input.
void activate(const LayerSpec& layer, const ExpertLinears& linears, const ExpertWeights& weights, const ExpertContext& context,
              ExpertPiece& piece) {
  const MoeSpec& moe = *layer.moe();
  const Tensor& x = piece.input;
  piece.inner = context.workspace->get("expert_activated", {x.dim(0), moe.intermediate}, context.operand);
  if (linears.gate_up >= 0) {
    piece.up = product(layer, linears.gate_up, weights.gate_up, x, "expert_up", context);
    kernels::gated_activation(piece.up, gated_shape(moe), piece.inner);
    return;
  }
  require(moe.activation == MoeSpec::Activation::kSiluGated, "an activation of separate gate and up that is not known");
  piece.gate = product(layer, linears.gate, weights.gate, x, "expert_gate", context);
  piece.up = product(layer, linears.up, weights.up, x, "expert_up", context);
  kernels::silu_mul(piece.gate, piece.up, piece.inner);
}

}  // namespace

kernels::GatedShape gated_shape(const MoeSpec& moe) {
  return {.interleaved = moe.interleaved,
          .clamped = moe.activation == MoeSpec::Activation::kClampedSwiglu,
          .alpha = moe.alpha,
          .limit = moe.limit};
}

Tensor router_logits(const RouterSpec& router, const std::map<std::string, Tensor>& vectors, const Tensor& x, Workspace& workspace) {
  const Tensor bias = router.has_bias ? vectors.at(router.module + ".bias") : Tensor();
  Tensor logits = workspace.get("router", {x.dim(0), router.experts}, DType::kF32);
  kernels::matmul(x, vectors.at(router.module + ".weight"), bias, logits);
  return logits;
}

void route_tokens(const MoeSpec& moe, const std::map<std::string, Tensor>& vectors, Workspace& workspace, TokenGroup& group) {
  const RouterSpec& router = moe.router;
  const int64_t tokens = group.x.dim(0);
  group.experts = Tensor::empty({tokens, router.top_k}, DType::kI32);
  group.weights = Tensor::empty({tokens, router.top_k}, DType::kF32);
  const Tensor correction = router.correction.empty() ? Tensor() : vectors.at(router.correction);
  for (int64_t begin = 0; begin < tokens; begin += kExpertRows) {
    const int64_t end = std::min(tokens, begin + kExpertRows);
    const Tensor logits = router_logits(router, vectors, group.x.rows(begin, end), workspace);
    Tensor experts = group.experts.rows(begin, end), weights = group.weights.rows(begin, end);
    kernels::route(logits, correction, router, experts, weights);
  }
}

void count_tokens(const TokenGroup& group, std::vector<int64_t>& counts) {
  const auto* experts = group.experts.data<int32_t>();
  for (int64_t i = 0; i < group.experts.numel(); ++i) counts[static_cast<size_t>(experts[i])] += 1;
}

std::vector<int> ForcedVisits::of(int64_t position, const int32_t* routed, int64_t top_k) const {
  std::vector<int> found;
  if (experts.empty() || position % stride != 0) return found;
  const auto count = static_cast<int64_t>(experts.size());
  for (int64_t j = 0; j < std::min(visits, count); ++j) {
    const int expert = experts[static_cast<size_t>((position / stride * visits + j) % count)];
    if (std::find(routed, routed + top_k, expert) == routed + top_k) found.push_back(expert);
  }
  return found;
}

ForcedVisits force_visits(std::vector<int> experts, int64_t tokens_each, int64_t tokens) {
  const int64_t wanted = 2 * tokens_each * static_cast<int64_t>(experts.size());
  ForcedVisits forced;
  forced.experts = std::move(experts);
  forced.stride = std::max<int64_t>(1, tokens / std::max<int64_t>(1, wanted));
  forced.visits = std::max<int64_t>(1, (wanted * forced.stride + tokens - 1) / std::max<int64_t>(1, tokens));
  return forced;
}

ChunkVisits chunk_visits(const MoeSpec& moe, const TokenGroup& group, int64_t begin, int64_t end, parallel::Range chunk,
                         const ForcedVisits& forced) {
  ChunkVisits visits;
  visits.routed.resize(static_cast<size_t>(chunk.size()));
  visits.forced.resize(visits.routed.size());
  if (begin == end) return visits;
  const int64_t top_k = moe.router.top_k;
  const auto* experts = group.experts.data<int32_t>();
  const auto* weights = group.weights.data<float>();
  const auto position = [&](int64_t t) { return group.positions[static_cast<size_t>(t)]; };
  const auto in_chunk = [&](int64_t e) { return chunk.begin <= e && e < chunk.end; };
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t j = t * top_k; j < (t + 1) * top_k; ++j)
      if (in_chunk(experts[j])) visits.routed[static_cast<size_t>(experts[j] - chunk.begin)].add(t, position(t), weights[j]);
    if (forced.experts.empty()) continue;
    // Where weights scale the expert's input: no larger than what the token's own experts read of it.
    const float least = *std::min_element(weights + t * top_k, weights + (t + 1) * top_k);
    for (const int e : forced.of(position(t), experts + t * top_k, top_k))
      if (in_chunk(e)) visits.forced[static_cast<size_t>(e - chunk.begin)].add(t, position(t), least);
  }
  return visits;
}

void run_expert(const LayerSpec& layer, int expert, const ExpertWeights& weights, const Tensor& x, const Visits& visits, bool forced,
                const ExpertContext& context, const std::function<void(const ExpertPiece&)>& take) {
  const MoeSpec& moe = *layer.moe();
  const ExpertLinears& linears = moe.experts[static_cast<size_t>(expert)];
  const auto count = static_cast<int64_t>(visits.rows.size());
  for (int64_t begin = 0; begin < count; begin += kExpertRows) {
    const int64_t end = std::min(count, begin + kExpertRows);
    const std::vector<int64_t> rows(visits.rows.begin() + begin, visits.rows.begin() + end);
    std::vector<float> scales;
    if (moe.scales_input) scales.assign(visits.weights.begin() + begin, visits.weights.begin() + end);
    ExpertPiece piece{.first = begin, .input = context.workspace->get("expert_input", {end - begin, x.dim(1)}, context.operand)};
    kernels::gather_rows(x, rows, scales, piece.input);
    const ExpertVisits visitors{forced, visits.positions.data() + begin, visits.weights.data() + begin};
    context.hooks->expert_input(layer, expert, linears.gate_up >= 0 ? linears.gate_up : linears.up, piece.input, visitors);
    activate(layer, linears, weights, context, piece);
    context.hooks->expert_input(layer, expert, linears.down, piece.inner, visitors);
    if (!take) continue;
    piece.output = product(layer, linears.down, weights.down, piece.inner, "expert_output", context);
    take(piece);
  }
}

void forward_experts(const LayerSpec& layer, const ExpertChunkView& chunk, const ForcedVisits& forced, const ExpertContext& context,
                     TokenGroup& group) {
  if (context.group->size() > 1) {
    exchange_experts(layer, chunk, forced, context, group);
    return;
  }
  if (chunk.skip) return;
  const MoeSpec& moe = *layer.moe();
  const int64_t tokens = group.x.defined() ? group.x.dim(0) : 0;
  const ChunkVisits visits = chunk_visits(moe, group, 0, tokens, chunk.experts, forced);
  for (int64_t e = chunk.experts.begin; e < chunk.experts.end; ++e) {
    const Visits& routed = visits.routed[static_cast<size_t>(e - chunk.experts.begin)];
    const Visits& extra = visits.forced[static_cast<size_t>(e - chunk.experts.begin)];
    if (routed.rows.empty() && extra.rows.empty()) continue;
    const ExpertWeights weights = chunk.weights(static_cast<int>(e));
    const auto add = [&](const ExpertPiece& piece) {
      const Tensor& y = piece.output;
      const auto at = routed.rows.begin() + piece.first;
      std::vector<float> factors(static_cast<size_t>(y.dim(0)), 1.0f);
      if (!moe.scales_input) std::copy_n(routed.weights.begin() + piece.first, y.dim(0), factors.begin());
      kernels::add_rows(group.hidden, {at, at + y.dim(0)}, factors, y);
    };
    run_expert(layer, static_cast<int>(e), weights, group.x, routed, false, context,
               context.statistics_only ? std::function<void(const ExpertPiece&)>() : add);
    run_expert(layer, static_cast<int>(e), weights, group.x, extra, true, context, nullptr);
  }
}

int64_t expert_scratch_bytes(const MoeSpec& moe, int64_t hidden, DType operand, int ranks, int64_t exchange_tokens) {
  const int64_t word = dtype_bytes(operand);
  const int64_t computing = kExpertRows * (moe.router.experts * 4 + hidden * (word + 4) + moe.intermediate * (8 + word) + hidden * 4);
  if (ranks == 1) return computing;
  // At worst all ranks' tokens want experts of this one.
  const int64_t visits = exchange_tokens * moe.router.top_k;
  const int64_t rows = exchange_tokens * std::min<int64_t>(ranks, moe.router.top_k);
  return computing + (rows + exchange_tokens * ranks) * hidden * word + (visits + visits * ranks) * hidden * 4;
}

}  // namespace ptq::layers
