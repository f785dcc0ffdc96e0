#pragma once
// Mixtures of experts small enough to compute by hand: every kind that published models have, tokens for them, and the formula in f64.

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "layers/moe.h"
#include "tests/support/reference_ops.h"

namespace ptq::test {

struct ExpertKind {
  std::string name;
  bool stacked = false, interleaved = false, clamped = false, bias = false, scales_input = false;
};

/// One by one as Qwen3-MoE, Mixtral and DeepSeek have them; stacked halves; gpt-oss; Llama 4.
inline const std::vector<ExpertKind>& expert_kinds() {
  static const std::vector<ExpertKind> kinds{
      {.name = "one by one"},
      {.name = "one by one with biases", .bias = true},
      {.name = "stacked halves", .stacked = true},
      {.name = "stacked, clamped, alternating, with biases", .stacked = true, .interleaved = true, .clamped = true, .bias = true},
      {.name = "stacked, reading a weighted input", .stacked = true, .scales_input = true},
  };
  return kinds;
}

struct ExpertSizes {
  int64_t hidden = 19, intermediate = 13, experts = 5, top_k = 2;
};

/// A layer that is nothing but a mixture, and its weights.
class TinyExperts {
 public:
  TinyExperts(const ExpertKind& kind, const ExpertSizes& sizes, DType dtype, uint64_t seed = 1) : sizes_(sizes) {
    layer.prefix = "model.layers.0";
    layers::MoeSpec moe;
    moe.router.module = layer.prefix + ".mlp.gate";
    moe.router.experts = sizes.experts;
    moe.router.top_k = sizes.top_k;
    moe.router.kind = layers::RouterSpec::Kind::kTopKSoftmax;
    moe.module = layer.prefix + ".mlp.experts";
    moe.intermediate = sizes.intermediate;
    moe.interleaved = kind.interleaved;
    if (kind.clamped) moe.activation = layers::MoeSpec::Activation::kClampedSwiglu;
    moe.limit = 0.9f;  // near enough that both clamps are met
    moe.alpha = 1.3f;
    moe.scales_input = kind.scales_input;
    const auto weights = [&](int64_t out, int64_t in) {
      layers::LinearWeights linear{random_tensor({out, in}, dtype, ++seed, 1.0f / std::sqrt(static_cast<float>(in))), Tensor()};
      if (kind.bias) linear.bias = random_tensor({out}, dtype, ++seed, 0.5f);
      return linear;
    };
    const auto add = [&](const std::string& name, int64_t out, int64_t in, int expert, bool feeds_down) {
      return add_linear(layer, {moe.module + name, out, in, kind.bias, layers::Split::kWhole, feeds_down ? 0 : 1, feeds_down ? 0 : 1,
                                expert, kind.stacked ? sizes.experts : 0, feeds_down});
    };
    layers::ExpertLinears stack;
    if (kind.stacked) {
      stack.gate_up = add(".gate_up_proj", 2 * sizes.intermediate, sizes.hidden, layers::kAllExperts, true);
      stack.down = add(".down_proj", sizes.hidden, sizes.intermediate, layers::kAllExperts, false);
    }
    for (int e = 0; e < sizes.experts; ++e) {
      layers::ExpertWeights expert;
      if (kind.stacked) {
        moe.experts.push_back(stack);
        expert.gate_up = weights(2 * sizes.intermediate, sizes.hidden);
      } else {
        const std::string name = "." + std::to_string(e);
        moe.experts.push_back({.gate = add(name + ".gate_proj", sizes.intermediate, sizes.hidden, e, true),
                               .up = add(name + ".up_proj", sizes.intermediate, sizes.hidden, e, true),
                               .down = add(name + ".down_proj", sizes.hidden, sizes.intermediate, e, false)});
        expert.gate = weights(sizes.intermediate, sizes.hidden);
        expert.up = weights(sizes.intermediate, sizes.hidden);
      }
      expert.down = weights(sizes.hidden, sizes.intermediate);
      experts_.push_back(expert);
    }
    vectors[moe.router.module + ".weight"] = random_tensor({sizes.experts, sizes.hidden}, dtype, ++seed, 0.5f);
    layer.blocks.push_back({{}, std::move(moe)});
  }

  const layers::MoeSpec& moe() const { return *layer.moe(); }
  const ExpertSizes& sizes() const { return sizes_; }
  const layers::ExpertWeights& weights(int expert) const { return experts_[static_cast<size_t>(expert)]; }

  layers::LayerSpec layer;
  std::map<std::string, Tensor> vectors;

 private:
  ExpertSizes sizes_;
  std::vector<layers::ExpertWeights> experts_;
};

/// `tokens` tokens with an input of `operand` and hidden states; positions are far from dense. Not routed yet.
inline layers::TokenGroup random_tokens(int64_t tokens, int64_t hidden, DType operand, uint64_t seed = 100) {
  layers::TokenGroup group;
  group.x = random_tensor({tokens, hidden}, operand, seed);
  group.hidden = random_tensor({tokens, hidden}, DType::kF32, seed + 1);
  for (int64_t t = 0; t < tokens; ++t) group.positions.push_back(3 * t + t % 2);
  return group;
}

inline Tensor rows_of(const Tensor& tensor, const std::vector<int64_t>& rows) {
  Shape shape = tensor.shape();
  shape[0] = static_cast<int64_t>(rows.size());
  const Tensor out = Tensor::empty(shape, tensor.dtype());
  for (size_t i = 0; i < rows.size(); ++i)
    std::copy_n(tensor.raw() + rows[i] * tensor.row_bytes(), tensor.row_bytes(), out.raw() + static_cast<int64_t>(i) * tensor.row_bytes());
  return out;
}

/// Copies of these tokens; with their routing, if they have any.
inline layers::TokenGroup some_tokens(const layers::TokenGroup& all, const std::vector<int64_t>& tokens) {
  layers::TokenGroup group;
  group.x = rows_of(all.x, tokens);
  group.hidden = rows_of(all.hidden, tokens);
  for (const int64_t t : tokens) group.positions.push_back(all.positions[static_cast<size_t>(t)]);
  if (all.experts.defined()) {
    group.experts = rows_of(all.experts, tokens);
    group.weights = rows_of(all.weights, tokens);
  }
  return group;
}

/// Runs of `per_chunk` experts, the last perhaps shorter.
inline std::vector<parallel::Range> chunks_of(int64_t experts, int64_t per_chunk) {
  std::vector<parallel::Range> chunks;
  for (int64_t begin = 0; begin < experts; begin += per_chunk) chunks.push_back({begin, std::min(experts, begin + per_chunk)});
  return chunks;
}

/// The routed tokens through all experts, chunk by chunk. Collective over `ranks`.
inline void run_chunks(const TinyExperts& model, int64_t per_chunk, const layers::ForcedVisits& forced, layers::LayerHooks& hooks,
                       parallel::Communicator& ranks, int64_t exchange_tokens, layers::TokenGroup& group) {
  layers::Workspace workspace;
  const layers::ExpertContext context{group.x.dtype(), &hooks, &workspace, &ranks, exchange_tokens};
  for (const parallel::Range& chunk : chunks_of(model.sizes().experts, per_chunk))
    layers::forward_experts(model.layer, {chunk, [&](int e) { return model.weights(e); }}, forced, context, group);
}

/// What a mixture's hooks were shown, in order.
class ExpertWitness : public layers::LayerHooks {
 public:
  struct Input {
    int expert, linear;
    Tensor x;
    bool forced;
  };
  void expert_input(const layers::LayerSpec&, int expert, int linear, const Tensor& x, const layers::ExpertVisits& visits) override {
    const Tensor copy = Tensor::empty(x.shape(), x.dtype());
    std::copy_n(x.raw(), x.bytes(), copy.raw());
    inputs.push_back({expert, linear, copy, visits.forced});
  }

  std::vector<Input> inputs;
};

/// hidden + Σ weight · expert(x) of every token of the group by itself, experts ascending. Where x is bf16, what experts and their down
/// projections read is rounded as they read it.
inline std::vector<double> plain_experts(const TinyExperts& model, const layers::TokenGroup& group) {
  const layers::MoeSpec& moe = model.moe();
  const std::vector<float> xs = values_of(group.x), hiddens = values_of(group.hidden), factors = values_of(group.weights);
  const auto width = static_cast<size_t>(model.sizes().hidden), inner = static_cast<size_t>(moe.intermediate);
  const auto rounded = [&](double value) {
    return group.x.dtype() == DType::kBF16 ? static_cast<double>(round_to_bf16(static_cast<float>(value))) : value;
  };
  using Row = std::vector<double>;
  const auto linear = [](const layers::LinearWeights& weights, const Row& x) {
    const std::vector<float> w = values_of(weights.weight);
    Row y(w.size() / x.size(), 0.0);
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += static_cast<double>(w[o * x.size() + i]) * x[i];
      if (weights.bias.defined()) y[o] += static_cast<double>(values_of(weights.bias)[o]);
    }
    return y;
  };
  std::vector<double> out(hiddens.begin(), hiddens.end());
  const int64_t top_k = group.experts.dim(1);
  for (int64_t visit = 0; visit < group.experts.numel(); ++visit) {
    const auto t = static_cast<size_t>(visit / top_k);
    const int expert = group.experts.data<int32_t>()[visit];
    const auto factor = static_cast<double>(factors[static_cast<size_t>(visit)]);
    Row x(xs.begin() + static_cast<int64_t>(t * width), xs.begin() + static_cast<int64_t>((t + 1) * width));
    if (moe.scales_input)
      for (double& value : x) value = rounded(value * factor);
    Row gate, up;
    if (moe.experts[static_cast<size_t>(expert)].gate_up >= 0) {
      const Row both = linear(model.weights(expert).gate_up, x);
      for (size_t i = 0; i < inner; ++i) {
        gate.push_back(moe.interleaved ? both[2 * i] : both[i]);
        up.push_back(moe.interleaved ? both[2 * i + 1] : both[inner + i]);
      }
    } else {
      gate = linear(model.weights(expert).gate, x);
      up = linear(model.weights(expert).up, x);
    }
    for (size_t i = 0; i < inner; ++i) {
      if (moe.activation == layers::MoeSpec::Activation::kClampedSwiglu) {
        const auto limit = static_cast<double>(moe.limit), alpha = static_cast<double>(moe.alpha);
        gate[i] = std::min(gate[i], limit);
        up[i] = std::clamp(up[i], -limit, limit) + 1;
        gate[i] /= 1 + std::exp(-alpha * gate[i]);
      } else {
        gate[i] /= 1 + std::exp(-gate[i]);
      }
      up[i] = rounded(up[i] * gate[i]);
    }
    const Row y = linear(model.weights(expert).down, up);
    for (size_t i = 0; i < width; ++i) out[t * width + i] += (moe.scales_input ? 1.0 : factor) * y[i];
  }
  return out;
}

}  // namespace ptq::test
