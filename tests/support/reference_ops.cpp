#include "tests/support/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace ptq::test {

namespace {

F16 to_f16(float x) {
  // By search: the half whose value is nearest. Only small tensors are made of it.
  F16 best{0};
  for (uint32_t bits = 0; bits < 0x7c00; ++bits)
    if (std::fabs(to_float(F16{static_cast<uint16_t>(bits)}) - std::fabs(x)) < std::fabs(to_float(best) - std::fabs(x)))
      best = {static_cast<uint16_t>(bits)};
  return {static_cast<uint16_t>(best.bits | (std::signbit(x) ? 0x8000 : 0))};
}

void set(const Tensor& tensor, int64_t i, float x) {
  switch (tensor.dtype()) {
    case DType::kBF16:
      tensor.data<BF16>()[i] = to_bf16(x);
      return;
    case DType::kF16:
      tensor.data<F16>()[i] = to_f16(x);
      return;
    default:
      tensor.data<float>()[i] = x;
      return;
  }
}

}  // namespace

Tensor random_tensor(Shape shape, DType dtype, uint64_t seed, float deviation) {
  Tensor tensor = Tensor::empty(std::move(shape), dtype);
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  for (int64_t i = 0; i < tensor.numel(); ++i) set(tensor, i, normal(random));
  return tensor;
}

Tensor tensor_of(const std::vector<float>& values, Shape shape, DType dtype) {
  Tensor tensor = Tensor::empty(std::move(shape), dtype);
  require(tensor.numel() == static_cast<int64_t>(values.size()), "tensor_of: shape and values differ");
  for (int64_t i = 0; i < tensor.numel(); ++i) set(tensor, i, values[static_cast<size_t>(i)]);
  return tensor;
}

std::vector<float> values_of(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.numel()));
  for (size_t i = 0; i < values.size(); ++i) switch (tensor.dtype()) {
      case DType::kBF16:
        values[i] = to_float(tensor.data<BF16>()[i]);
        break;
      case DType::kF16:
        values[i] = to_float(tensor.data<F16>()[i]);
        break;
      default:
        values[i] = tensor.data<float>()[i];
        break;
    }
  return values;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

double relative_error(const Tensor& a, const std::vector<double>& b) {
  const std::vector<float> values = values_of(a);
  double error = 0, scale = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(values[i]) - b[i]);
    if (!(difference <= error)) error = difference;  // NaN counts as the largest error
    scale = std::max(scale, std::fabs(b[i]));
  }
  return error / scale;
}

Tensor matmul_by_fma(const Tensor& x, const Tensor& w, const Tensor& bias) {
  const std::vector<float> xs = values_of(x), ws = values_of(w), biases = bias.defined() ? values_of(bias) : std::vector<float>{};
  const int64_t depth = x.dim(1), outputs = w.dim(0);
  Tensor y = Tensor::empty({x.dim(0), outputs}, DType::kF32);
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t o = 0; o < outputs; ++o) {
      float sum = 0.0f;
      for (int64_t c = 0; c < depth; ++c)
        sum = std::fma(xs[static_cast<size_t>(t * depth + c)], ws[static_cast<size_t>(o * depth + c)], sum);
      y.data<float>()[t * outputs + o] = biases.empty() ? sum : sum + biases[static_cast<size_t>(o)];
    }
  return y;
}

std::vector<double> matmul_in_f64(const Tensor& x, const Tensor& w) {
  const std::vector<float> xs = values_of(x), ws = values_of(w);
  const size_t depth = static_cast<size_t>(x.dim(1)), outputs = static_cast<size_t>(w.dim(0)), tokens = static_cast<size_t>(x.dim(0));
  std::vector<double> y(tokens * outputs, 0.0);
  for (size_t t = 0; t < tokens; ++t)
    for (size_t o = 0; o < outputs; ++o)
      for (size_t c = 0; c < depth; ++c)
        y[t * outputs + o] += static_cast<double>(xs[t * depth + c]) * static_cast<double>(ws[o * depth + c]);
  return y;
}

std::vector<double> attention_in_f64(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks,
                                     const std::vector<int64_t>& starts, const kernels::AttentionShape& shape) {
  const std::vector<float> qs = values_of(q), ks = values_of(k), vs = values_of(v);
  std::vector<double> out(static_cast<size_t>(q.dim(0) * shape.heads * shape.v_head_dim), 0.0);
  for (size_t s = 0; s + 1 < starts.size(); ++s)
    for (int64_t head = 0; head < shape.heads; ++head)
      for (int64_t query = starts[s]; query < starts[s + 1]; ++query) {
        const int64_t kv = head / (shape.heads / shape.kv_heads);
        int64_t first = starts[s];
        if (shape.window) first = std::max(first, query - shape.window + 1);
        if (shape.chunk) first += (query - starts[s]) / shape.chunk * shape.chunk;
        std::vector<double> weights;
        for (int64_t key = first; key <= query; ++key) {
          double score = 0;
          for (int64_t d = 0; d < shape.head_dim; ++d)
            score += static_cast<double>(qs[static_cast<size_t>((query * shape.heads + head) * shape.head_dim + d)]) *
                     static_cast<double>(ks[static_cast<size_t>((key * shape.kv_heads + kv) * shape.head_dim + d)]);
          weights.push_back(score * static_cast<double>(shape.scale));
        }
        double highest = *std::max_element(weights.begin(), weights.end()), total = 0;
        if (sinks.defined()) {
          const auto sink = static_cast<double>(values_of(sinks)[static_cast<size_t>(head)]);
          highest = std::max(highest, sink);
          total = std::exp(sink - highest);
        }
        for (double& weight : weights) total += weight = std::exp(weight - highest);
        for (int64_t d = 0; d < shape.v_head_dim; ++d)
          for (int64_t key = first; key <= query; ++key)
            out[static_cast<size_t>((query * shape.heads + head) * shape.v_head_dim + d)] +=
                weights[static_cast<size_t>(key - first)] / total *
                static_cast<double>(vs[static_cast<size_t>((key * shape.kv_heads + kv) * shape.v_head_dim + d)]);
      }
  return out;
}

std::vector<double> rope_in_f64(const Tensor& x, const kernels::RopeShape& shape, const Tensor& positions, const Tensor& cos,
                                const Tensor& sin) {
  const std::vector<float> xs = values_of(x), cosines = values_of(cos), sines = values_of(sin);
  std::vector<double> out(xs.begin(), xs.end());
  const int64_t half = shape.rotary_dim / 2, heads = x.dim(1) / shape.head_dim;
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < half; ++i) {
        const int64_t begin = (t * heads + head) * shape.head_dim + shape.offset;
        const auto a = static_cast<size_t>(begin + (shape.interleaved ? 2 * i : i));
        const auto b = static_cast<size_t>(begin + (shape.interleaved ? 2 * i + 1 : i + half));
        const auto at = static_cast<size_t>(positions.data<int32_t>()[t] * half + i);
        const auto c = static_cast<double>(cosines[at]), s = static_cast<double>(sines[at]);
        const auto first = static_cast<double>(xs[a]), second = static_cast<double>(xs[b]);
        out[a] = first * c - second * s;
        out[b] = second * c + first * s;
      }
  return out;
}

std::vector<double> rms_norm_in_f64(const Tensor& x, const Tensor& w, int64_t width, float eps) {
  const std::vector<float> xs = values_of(x), ws = values_of(w);
  std::vector<double> out(xs.size());
  const auto columns = static_cast<size_t>(width);
  for (size_t begin = 0; begin < xs.size(); begin += columns) {
    double squares = 0;
    for (size_t c = 0; c < columns; ++c) squares += static_cast<double>(xs[begin + c]) * static_cast<double>(xs[begin + c]);
    const double root = std::sqrt(squares / static_cast<double>(width) + static_cast<double>(eps));
    for (size_t c = 0; c < columns; ++c) out[begin + c] = static_cast<double>(ws[c]) * static_cast<double>(xs[begin + c]) / root;
  }
  return out;
}

std::vector<double> layer_norm_1p_in_f64(const Tensor& x, const Tensor& w, const Tensor& bias, float eps) {
  const std::vector<float> xs = values_of(x), ws = values_of(w), bs = values_of(bias);
  std::vector<double> out(xs.size());
  const auto columns = static_cast<size_t>(x.dim(1));
  for (size_t begin = 0; begin < xs.size(); begin += columns) {
    double mean = 0, variance = 0;
    for (size_t c = 0; c < columns; ++c) mean += static_cast<double>(xs[begin + c]) / static_cast<double>(columns);
    for (size_t c = 0; c < columns; ++c) variance += std::pow(static_cast<double>(xs[begin + c]) - mean, 2) / static_cast<double>(columns);
    const double root = std::sqrt(variance + static_cast<double>(eps));
    for (size_t c = 0; c < columns; ++c)
      out[begin + c] = (static_cast<double>(xs[begin + c]) - mean) / root * (1.0 + static_cast<double>(ws[c])) + static_cast<double>(bs[c]);
  }
  return out;
}

std::vector<double> gated_activation_in_f64(const Tensor& gate_up, const kernels::GatedShape& shape) {
  const std::vector<float> both = values_of(gate_up);
  const auto width = static_cast<size_t>(gate_up.dim(1) / 2);
  std::vector<double> out;
  for (size_t t = 0; t < static_cast<size_t>(gate_up.dim(0)); ++t)
    for (size_t i = 0; i < width; ++i) {
      const float* const row = both.data() + t * 2 * width;
      auto gate = static_cast<double>(shape.interleaved ? row[2 * i] : row[i]);
      auto up = static_cast<double>(shape.interleaved ? row[2 * i + 1] : row[width + i]);
      if (shape.clamped) {
        const auto limit = static_cast<double>(shape.limit), alpha = static_cast<double>(shape.alpha);
        gate = std::min(gate, limit);
        up = std::clamp(up, -limit, limit);
        out.push_back((up + 1) * gate / (1 + std::exp(-alpha * gate)));
      } else {
        out.push_back(up * gate / (1 + std::exp(-gate)));
      }
    }
  return out;
}

Routing route_in_f64(const Tensor& logits, const Tensor& correction, const kernels::RouteRule& rule) {
  using Kind = kernels::RouteRule::Kind;
  const std::vector<float> all = values_of(logits), corrections = correction.defined() ? values_of(correction) : std::vector<float>{};
  const auto count = static_cast<size_t>(logits.dim(1)), top_k = static_cast<size_t>(rule.top_k);
  const auto is_sigmoid = rule.kind == Kind::kSigmoid || rule.kind == Kind::kGroupedSigmoid;
  // The index of the best of those left, the first one at ties; it is taken out.
  const auto take_best = [](const std::vector<double>& scores, std::vector<bool>& left) {
    size_t best = scores.size();
    for (size_t i = 0; i < scores.size(); ++i)
      if (left[i] && (best == scores.size() || scores[i] > scores[best])) best = i;
    left[best] = false;
    return best;
  };
  Routing routing;
  for (size_t t = 0; t < static_cast<size_t>(logits.dim(0)); ++t) {
    std::vector<double> scores(all.begin() + static_cast<int64_t>(t * count), all.begin() + static_cast<int64_t>((t + 1) * count));
    const double highest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) {
      score = is_sigmoid ? 1 / (1 + std::exp(-score)) : std::exp(score - highest);
      total += score;
    }
    std::vector<double> choices = scores;
    for (size_t e = 0; e < corrections.size(); ++e) choices[e] += static_cast<double>(corrections[e]);

    std::vector<bool> left(count, true);
    if (rule.kind == Kind::kGroupedSigmoid) {
      const auto groups = static_cast<size_t>(rule.groups), size = count / groups;
      std::vector<double> group_scores;
      for (size_t g = 0; g < groups; ++g) {
        std::vector<double> members(choices.begin() + static_cast<int64_t>(g * size),
                                    choices.begin() + static_cast<int64_t>((g + 1) * size));
        std::sort(members.rbegin(), members.rend());
        group_scores.push_back(size == 1 ? members[0] : members[0] + members[1]);
      }
      std::vector<bool> groups_left(groups, true);
      left.assign(count, false);
      for (int64_t g = 0; g < rule.top_groups; ++g) {
        const size_t best = take_best(group_scores, groups_left);
        std::fill_n(left.begin() + static_cast<int64_t>(best * size), size, true);
      }
    }
    std::vector<size_t> chosen;
    for (size_t k = 0; k < top_k; ++k) chosen.push_back(take_best(choices, left));
    std::sort(chosen.begin(), chosen.end());

    double sum = 0;
    for (const size_t e : chosen) sum += scores[e];
    for (const size_t e : chosen) {
      double weight = scores[e];
      if (rule.kind == Kind::kSoftmax) weight /= rule.normalize ? sum : total;
      if (rule.kind == Kind::kTopKSoftmax) weight /= sum;
      if (rule.kind == Kind::kGroupedSigmoid) weight *= static_cast<double>(rule.scaling) / (rule.normalize ? sum + 1e-20 : 1.0);
      routing.experts.push_back(static_cast<int32_t>(e));
      routing.weights.push_back(weight);
    }
  }
  return routing;
}

float e4m3_value(uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

float e2m1_value(uint8_t code) {
  constexpr float kMagnitudes[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return code & 8 ? -kMagnitudes[code & 7] : kMagnitudes[code & 7];
}

}  // namespace ptq::test
