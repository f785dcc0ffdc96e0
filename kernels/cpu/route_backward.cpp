#include <algorithm>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {

constexpr int64_t kTokensPerTask = 16;

/// The chosen experts of one token.
struct Chosen {
  int64_t count;
  const int32_t* experts;
  const float *weights, *dweights;
};

/// Σ dw·w over the chosen, in their order.
float dot(const Chosen& chosen) {
  float sum = 0.0f;
  for (int64_t k = 0; k < chosen.count; ++k) sum += chosen.dweights[k] * chosen.weights[k];
  return sum;
}

/// Of weights that are a softmax of all logits: dlogit = p·(dp - Σ dp·p), dp being 0 for those not chosen.
void softmax_backward(const Chosen& chosen, const float* logits, int64_t experts, float* dlogits) {
  const float pull = dot(chosen);
  row_kernels().softmax(logits, experts, dlogits);
  for (int64_t e = 0; e < experts; ++e) dlogits[e] *= -pull;
  for (int64_t k = 0; k < chosen.count; ++k) dlogits[chosen.experts[k]] = chosen.weights[k] * (chosen.dweights[k] - pull);
}

/// Of weights that are a softmax of the chosen ones' logits, as those of all experts are too once they are divided by their sum.
void softmax_of_chosen_backward(const Chosen& chosen, float* dlogits) {
  const float pull = dot(chosen);
  for (int64_t k = 0; k < chosen.count; ++k) dlogits[chosen.experts[k]] = chosen.weights[k] * (chosen.dweights[k] - pull);
}

/// Of weights scaling·s, or scaling·s/(Σs + 1e-20), with s = sigmoid(logit): dlogit = ds·s·(1-s). sigmoids: scratch [3][K].
void sigmoid_backward(const Chosen& chosen, bool normalize, float scaling, const float* logits, float* sigmoids, float* dlogits) {
  float *const of_logit = sigmoids, *const of_opposite = sigmoids + chosen.count, *const opposites = sigmoids + 2 * chosen.count;
  for (int64_t k = 0; k < chosen.count; ++k) {
    of_opposite[k] = logits[chosen.experts[k]];
    opposites[k] = -of_opposite[k];
  }
  row_kernels().sigmoid(of_opposite, chosen.count, of_logit);
  row_kernels().sigmoid(opposites, chosen.count, of_opposite);  // 1-s without its rounding
  float sum = 1.0f, pull = 0.0f;
  if (normalize) {
    sum = 0.0f;
    for (int64_t k = 0; k < chosen.count; ++k) sum += of_logit[k];
    sum += 1e-20f;
    pull = dot(chosen);
  }
  for (int64_t k = 0; k < chosen.count; ++k)
    dlogits[chosen.experts[k]] = (scaling * chosen.dweights[k] - pull) / sum * of_logit[k] * of_opposite[k];
}

}  // namespace

void route_backward(const Tensor& logits, const RouteRule& rule, const Tensor& experts, const Tensor& weights, const Tensor& dweights,
                    Tensor& dlogits) {
  const int64_t tokens = logits.dim(0), count = logits.dim(1), top_k = rule.top_k;
  require(logits.rank() == 2 && dlogits.shape() == logits.shape(), "route_backward: logits or dlogits are not [T, E]");
  require(experts.shape() == Shape{tokens, top_k} && weights.shape() == experts.shape() && dweights.shape() == experts.shape(),
          "route_backward: experts, weights or dweights are not [T, K]");
  const float* const values = logits.data<float>();
  const auto* const indices = experts.data<int32_t>();
  const float *const outputs = weights.data<float>(), *const by_output = dweights.data<float>();
  float* const to = dlogits.data<float>();
  for (int64_t i = 0; i < experts.numel(); ++i)
    require(0 <= indices[i] && indices[i] < count, "route_backward: an expert that there is not");

  parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> sigmoids(static_cast<size_t>(3 * top_k));
    for (int64_t t = begin; t < end; ++t) {
      const Chosen chosen{top_k, indices + t * top_k, outputs + t * top_k, by_output + t * top_k};
      const float* const row = values + t * count;
      float* const gradients = to + t * count;
      std::fill_n(gradients, count, 0.0f);
      switch (rule.kind) {
        case RouteRule::Kind::kSoftmax:
          if (rule.normalize)
            softmax_of_chosen_backward(chosen, gradients);
          else
            softmax_backward(chosen, row, count, gradients);
          break;
        case RouteRule::Kind::kTopKSoftmax:
          softmax_of_chosen_backward(chosen, gradients);
          break;
        case RouteRule::Kind::kSigmoid:
          sigmoid_backward(chosen, false, 1.0f, row, sigmoids.data(), gradients);
          break;
        case RouteRule::Kind::kGroupedSigmoid:
          sigmoid_backward(chosen, rule.normalize, rule.scaling, row, sigmoids.data(), gradients);
          break;
      }
    }
  });
}

void row_dots(const Tensor& x, const Tensor& y, Tensor& out) {
  require(x.rank() == 2 && y.shape() == x.shape() && out.shape() == Shape{x.dim(0), 1}, "row_dots: x, y are not [T, H] or out not [T, 1]");
  const bool is_bf16 = x.dtype() == DType::kBF16;
  const int64_t width = x.dim(1);
  parallel_ranges(x.dim(0), kTokensPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      double sum = 0;
      const float* const b = y.data<float>() + t * width;
      for (int64_t i = t * width; i < (t + 1) * width; ++i) {
        const float a = is_bf16 ? to_float(x.data<BF16>()[i]) : x.data<float>()[i];
        sum += static_cast<double>(a) * static_cast<double>(b[i - t * width]);
      }
      out.data<float>()[t] = static_cast<float>(sum);
    }
  });
}

}  // namespace ptq::kernels::cpu
