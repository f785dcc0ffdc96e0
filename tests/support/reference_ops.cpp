#include "tests/support/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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

std::vector<double> attention_in_f64(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& starts,
                                     const kernels::AttentionShape& shape) {
  const std::vector<float> qs = values_of(q), ks = values_of(k), vs = values_of(v);
  std::vector<double> out(static_cast<size_t>(q.dim(0) * shape.heads * shape.v_head_dim), 0.0);
  for (size_t s = 0; s + 1 < starts.size(); ++s)
    for (int64_t head = 0; head < shape.heads; ++head)
      for (int64_t query = starts[s]; query < starts[s + 1]; ++query) {
        const int64_t kv = head / (shape.heads / shape.kv_heads);
        const int64_t first = shape.window ? std::max(starts[s], query - shape.window + 1) : starts[s];
        std::vector<double> weights;
        for (int64_t key = first; key <= query; ++key) {
          double score = 0;
          for (int64_t d = 0; d < shape.head_dim; ++d)
            score += static_cast<double>(qs[static_cast<size_t>((query * shape.heads + head) * shape.head_dim + d)]) *
                     static_cast<double>(ks[static_cast<size_t>((key * shape.kv_heads + kv) * shape.head_dim + d)]);
          weights.push_back(score * static_cast<double>(shape.scale));
        }
        const double highest = *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double& weight : weights) total += weight = std::exp(weight - highest);
        for (int64_t d = 0; d < shape.v_head_dim; ++d)
          for (int64_t key = first; key <= query; ++key)
            out[static_cast<size_t>((query * shape.heads + head) * shape.v_head_dim + d)] +=
                weights[static_cast<size_t>(key - first)] / total *
                static_cast<double>(vs[static_cast<size_t>((key * shape.kv_heads + kv) * shape.v_head_dim + d)]);
      }
  return out;
}

}  // namespace ptq::test
