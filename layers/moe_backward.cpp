#include <algorithm>

#include "kernels/backward_ops.h"
#include "kernels/ops.h"
#include "layers/backward_block.h"
#include "layers/token_exchange.h"

namespace ptq::layers {

namespace {

/// One expert's way back, for visits first, first + 1, ... of n tokens; in buffers that the next piece reuses.
struct GradientPiece {
  int64_t first = 0;
  Tensor x;        ///< [n, H] f32: by what the expert read
  Tensor weights;  ///< [n, 1] f32: by the router's weights
};

/// One expert with its matrices transposed.
class ExpertBackward {
 public:
  ExpertBackward(const LayerSpec& layer, int expert, const ExpertWeights& weights, const ExpertContext& context, GradientHooks& hooks)
      : layer_(layer),
        linears_(layer.moe()->experts[static_cast<size_t>(expert)]),
        expert_(expert),
        weights_(weights),
        context_(context),
        hooks_(hooks) {
    if (linears_.gate_up >= 0) {
      gate_up_ = transposed(weights.gate_up.weight, "gate_up");
    } else {
      gate_ = transposed(weights.gate.weight, "gate");
      up_ = transposed(weights.up.weight, "up");
    }
    down_ = transposed(weights.down.weight, "down");
  }

  /// x and gradient [T, H]: what the visits' rows index. Hands its results over piece by piece.
  void run(const Tensor& x, const Tensor& gradient, const Visits& visits, const std::function<void(const GradientPiece&)>& take) const {
    run_expert(layer_, expert_, weights_, x, visits, false, context_,
               [&](const ExpertPiece& piece) { take(back(piece, x, gradient, visits)); });
  }

 private:
  Tensor buffer(const std::string& name, int64_t rows, int64_t width, DType dtype = DType::kF32) const {
    return context_.workspace->get("expert_back." + name, {rows, width}, dtype);
  }
  Tensor transposed(const Tensor& weight, const std::string& name) const {
    Tensor columns = buffer(name + ".columns", weight.dim(1), weight.dim(0), weight.dtype());
    kernels::transpose(weight, columns);
    return columns;
  }
  /// dy·W, [n, C] f32.
  Tensor product(const Tensor& dy, const Tensor& columns, const std::string& name) const {
    Tensor operand = dy;
    if (dy.dtype() != context_.operand) {
      operand = buffer("operand", dy.dim(0), dy.dim(1), context_.operand);
      kernels::convert(dy, operand);
    }
    Tensor dx = buffer(name, dy.dim(0), columns.dim(0));
    kernels::matmul(operand, columns, Tensor(), dx);
    return dx;
  }

  GradientPiece back(const ExpertPiece& piece, const Tensor& x, const Tensor& gradient, const Visits& visits) const {
    const int64_t n = piece.input.dim(0);
    const std::vector<int64_t> rows(visits.rows.begin() + piece.first, visits.rows.begin() + piece.first + n);
    const ExpertVisits visitors{false, visits.positions.data() + piece.first, visits.weights.data() + piece.first};
    const bool scales_input = layer_.moe()->scales_input;
    GradientPiece result{.first = piece.first, .weights = buffer("weights", n, 1)};
    Tensor dy = buffer("output", n, gradient.dim(1));
    kernels::gather_rows(gradient, rows, {}, dy);
    if (!scales_input) {
      kernels::row_dots(dy, piece.output, result.weights);
      Tensor factors = buffer("factors", n, 1).reshaped({n});
      std::copy_n(visitors.weights, n, factors.data<float>());
      kernels::scale_rows(dy, factors);
    }
    hooks_.expert_gradient(layer_, expert_, linears_.down, piece.inner, piece.output, dy, visitors);
    result.x = by_input(piece, product(dy, down_, "inner"), visitors);
    if (scales_input) {
      Tensor unscaled = buffer("unscaled", n, x.dim(1), x.dtype());
      kernels::gather_rows(x, rows, {}, unscaled);
      kernels::row_dots(unscaled, result.x, result.weights);
    }
    return result;
  }

  /// From the gradient by what down read, [n, I] f32, that by what gate and up read.
  Tensor by_input(const ExpertPiece& piece, const Tensor& inner, const ExpertVisits& visitors) const {
    const auto show = [&](int linear, const Tensor& y, const Tensor& dy) {
      hooks_.expert_gradient(layer_, expert_, linear, piece.input, y, dy, visitors);
    };
    Tensor by_up = buffer("by_up", piece.up.dim(0), piece.up.dim(1));
    if (linears_.gate_up >= 0) {
      kernels::gated_activation_backward(piece.up, gated_shape(*layer_.moe()), inner, by_up);
      show(linears_.gate_up, piece.up, by_up);
      return product(by_up, gate_up_, "input");
    }
    Tensor by_gate = buffer("by_gate", piece.gate.dim(0), piece.gate.dim(1));
    kernels::silu_mul_backward(piece.gate, piece.up, inner, by_gate, by_up);
    show(linears_.gate, piece.gate, by_gate);
    show(linears_.up, piece.up, by_up);
    Tensor x = product(by_gate, gate_, "input");
    kernels::add_in_place(x, product(by_up, up_, "input_more"));
    return x;
  }

  const LayerSpec& layer_;
  const ExpertLinears& linears_;
  int expert_;
  const ExpertWeights& weights_;
  const ExpertContext& context_;
  GradientHooks& hooks_;
  Tensor gate_, up_, gate_up_, down_;
};

/// What one expert gave back for visits first, first + 1, ...: x [n, H] is added to the tokens, weights [n, 1] are set.
void take_back(const MoeSpec& moe, int expert, const Visits& visits, int64_t first, const Tensor& x, const Tensor& weights,
               GradientGroup& group) {
  const int64_t n = x.dim(0), top_k = moe.router.top_k;
  const auto rows = visits.rows.begin() + first;
  std::vector<float> factors(static_cast<size_t>(n), 1.0f);
  if (moe.scales_input) std::copy_n(visits.weights.begin() + first, n, factors.begin());
  kernels::add_rows(group.x_gradient, {rows, rows + n}, factors, x);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* const experts = group.tokens.experts.data<int32_t>() + rows[i] * top_k;
    const auto choice = std::find(experts, experts + top_k, expert) - experts;
    group.weight_gradient.data<float>()[rows[i] * top_k + choice] = weights.data<float>()[i];
  }
}

/// One block of this rank's tokens, with the blocks that the other ranks send at the same time.
void exchange_block(const LayerSpec& layer, const ExpertChunkView& chunk, const ExpertContext& context, GradientHooks& hooks,
                    GradientGroup& group, int64_t begin, int64_t end) {
  const MoeSpec& moe = *layer.moe();
  const TokenExchange exchange(moe, context, group.tokens, begin, end, chunk.experts, {});
  const Tensor x = exchange.send(group.tokens.x, "exchange_rows"), gradient = exchange.send(group.gradient, "exchange_gradients");
  Tensor by_x = context.workspace->get("exchange_outputs", {exchange.slots(), x.dim(1)}, DType::kF32);
  Tensor by_weights = context.workspace->get("exchange_weights", {exchange.slots(), 1}, DType::kF32);
  if (chunk.skip) {
    std::fill_n(by_x.data<float>(), by_x.numel(), 0.0f);
    std::fill_n(by_weights.data<float>(), by_weights.numel(), 0.0f);
  }
  for (const TokenExchange::Arrival& arrival : exchange.arrivals()) {
    if (chunk.skip) break;
    const ExpertWeights weights = chunk.weights(arrival.expert);
    ExpertBackward(layer, arrival.expert, weights, context, hooks).run(x, gradient, arrival.routed, [&](const GradientPiece& piece) {
      place_rows(piece.x, arrival.slots, piece.first, by_x);
      place_rows(piece.weights, arrival.slots, piece.first, by_weights);
    });
  }
  const Tensor x_back = exchange.give_back(by_x, "exchange_returned"),
               weights_back = exchange.give_back(by_weights, "exchange_weights_returned");
  int64_t at = 0;
  for (int64_t e = chunk.experts.begin; e < chunk.experts.end; ++e) {
    const Visits& visits = exchange.visits().routed[static_cast<size_t>(e - chunk.experts.begin)];
    const auto count = static_cast<int64_t>(visits.rows.size());
    if (count == 0) continue;
    take_back(moe, static_cast<int>(e), visits, 0, x_back.rows(at, at + count), weights_back.rows(at, at + count), group);
    at += count;
  }
}

}  // namespace

void backward_experts(const LayerSpec& layer, const ExpertChunkView& chunk, const ExpertContext& context, GradientHooks& hooks,
                      GradientGroup& group) {
  require(!context.statistics_only, "backward_experts: of a pass without outputs");
  const int64_t tokens = group.tokens.x.defined() ? group.tokens.x.dim(0) : 0;
  if (context.group->size() > 1) {
    in_exchanged_blocks(context, tokens,
                        [&](int64_t begin, int64_t end) { exchange_block(layer, chunk, context, hooks, group, begin, end); });
    return;
  }
  if (chunk.skip) return;
  const MoeSpec& moe = *layer.moe();
  const ChunkVisits all = chunk_visits(moe, group.tokens, 0, tokens, chunk.experts, {});
  for (int64_t e = chunk.experts.begin; e < chunk.experts.end; ++e) {
    const Visits& visits = all.routed[static_cast<size_t>(e - chunk.experts.begin)];
    if (visits.rows.empty()) continue;
    const int expert = static_cast<int>(e);
    const ExpertWeights weights = chunk.weights(expert);
    ExpertBackward(layer, expert, weights, context, hooks).run(group.tokens.x, group.gradient, visits, [&](const GradientPiece& piece) {
      take_back(moe, expert, visits, piece.first, piece.x, piece.weights, group);
    });
  }
}

Tensor mixture_backward(const BlockGradient& back, const MoeSpec& spec, const RoutedGradient& routed, const Tensor& dy) {
  const RouterSpec& router = spec.router;
  Workspace& scratch = back.block.scratch();
  const int64_t tokens = dy.dim(0), hidden = dy.dim(1);
  Tensor total;
  if (spec.shared) {
    total = back.gather(mlp_backward(back, *spec.shared, dy), hidden, "input");
  } else {
    total = back.buffer("input", hidden);
    std::fill_n(total.data<float>(), total.numel(), 0.0f);
  }

  const Tensor& weight = back.vectors().at(router.module + ".weight");
  Tensor columns = scratch.get("back.router.columns", {hidden, router.experts}, weight.dtype());
  kernels::transpose(weight, columns);
  for (int64_t begin = 0; begin < tokens; begin += kExpertRows) {
    const int64_t end = std::min(tokens, begin + kExpertRows);
    const Tensor logits = router_logits(router, back.vectors(), back.trace().x.rows(begin, end), scratch);
    Tensor by_logits = scratch.get("back.logits", logits.shape(), DType::kF32);
    kernels::route_backward(logits, router, routed.experts.rows(begin, end), routed.router_weights.rows(begin, end),
                            routed.weights.rows(begin, end), by_logits);
    Tensor by_x = scratch.get("back.router", {end - begin, hidden}, DType::kF32);
    kernels::matmul(by_logits, columns, Tensor(), by_x);
    Tensor rows = total.rows(begin, end);
    kernels::add_in_place(rows, by_x);
  }
  kernels::add_in_place(total, routed.x);
  return total;
}

}  // namespace ptq::layers
