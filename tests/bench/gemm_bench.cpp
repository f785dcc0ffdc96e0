// How fast the matrix products are beside oneDNN's f32 product, which only this program links. Usage: gemm_bench [threads]

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <oneapi/dnnl/dnnl.hpp>
#include <thread>

#include "kernels/backward_ops.h"
#include "kernels/core/thread_pool.h"
#include "kernels/ops.h"

namespace ptq {
namespace {

/// Best of several runs, after one to warm up.
double seconds_of(const std::function<void()>& body) {
  double best = 1e30;
  for (int run = 0; run < 6; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (run > 0) best = std::min(best, took.count());
  }
  return best;
}

/// Numbers in [-1, 1], every bit of the mantissa in use.
Tensor numbers(Shape shape) {
  Tensor tensor = Tensor::empty(std::move(shape), DType::kF32);
  uint32_t state = 1;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    tensor.data<float>()[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return tensor;
}

void bench(int64_t tokens, int64_t depth, int64_t outputs) {
  const Tensor x = numbers({tokens, depth}), w = numbers({outputs, depth});
  Tensor x_bf16 = Tensor::empty(x.shape(), DType::kBF16), w_bf16 = Tensor::empty(w.shape(), DType::kBF16);
  kernels::convert(x, x_bf16);
  kernels::convert(w, w_bf16);
  Tensor y = Tensor::zeros({tokens, outputs}, DType::kF32);
  const double gflop = 2e-9 * static_cast<double>(tokens) * static_cast<double>(depth) * static_cast<double>(outputs);

  const double onednn =
      gflop / seconds_of([&] {
        dnnl::sgemm('N', 'T', tokens, outputs, depth, 1.0f, x.data<float>(), depth, w.data<float>(), depth, 0.0f, y.data<float>(), outputs);
      });
  fmt::print("T={} C={} O={}\n  oneDNN f32     {:7.1f} GFLOP/s\n", tokens, depth, outputs, onednn);
  const auto ours = [&](kernels::MatmulKernel kernel, const char* name, const Tensor& in, const Tensor& weight) {
    try {
      kernels::set_matmul_kernel(kernel);
    } catch (const Error&) {
      fmt::print("  {:14} not on this processor\n", name);
      return;
    }
    const double rate = gflop / seconds_of([&] { kernels::matmul(in, weight, {}, y); });
    fmt::print("  {:14} {:7.1f} GFLOP/s   {:.2f} x oneDNN f32\n", name, rate, rate / onednn);
  };
  ours(kernels::MatmulKernel::kAvx2, "own avx2", x, w);
  ours(kernels::MatmulKernel::kAvx512, "own avx512", x, w);
  ours(kernels::MatmulKernel::kAvx512, "  bf16 inputs", x_bf16, w_bf16);
  ours(kernels::MatmulKernel::kAvx512Bf16, "own bf16 pairs", x_bf16, w_bf16);
}

void bench_attention(int64_t sequences, int64_t length, const kernels::AttentionShape& shape) {
  const int64_t tokens = sequences * length;
  const Tensor q = numbers({tokens, shape.heads * shape.head_dim}), k = numbers({tokens, shape.kv_heads * shape.head_dim});
  const Tensor v = numbers({tokens, shape.kv_heads * shape.v_head_dim});
  Tensor out = Tensor::empty({tokens, shape.heads * shape.v_head_dim}, DType::kBF16);
  std::vector<int64_t> starts;
  for (int64_t s = 0; s <= sequences; ++s) starts.push_back(s * length);
  // A query sees half of the keys on average; two products.
  const double gflop = 1e-9 * static_cast<double>(tokens * (length + 1) * shape.heads * (shape.head_dim + shape.v_head_dim));
  const double forward = seconds_of([&] { kernels::causal_attention(q, k, v, Tensor{}, starts, shape, out); });
  fmt::print("attention T={} D={}   {:7.1f} GFLOP/s   {:.1f} per thread\n", length, shape.head_dim, gflop / forward,
             gflop / forward / num_threads());
  // Five products of the same size, where the attention itself has two.
  const Tensor dout = numbers(out.shape());
  Tensor dq = Tensor::empty(q.shape(), DType::kF32), dk = Tensor::empty(q.shape(), DType::kF32);
  Tensor dv = Tensor::empty(dout.shape(), DType::kF32);
  const double backward = seconds_of([&] { kernels::causal_attention_backward(q, k, v, Tensor{}, starts, shape, dout, dq, dk, dv); });
  fmt::print("  backward            {:7.1f} GFLOP/s   {:.2f} x the time of attention\n", 2.5 * gflop / backward, backward / forward);
}

}  // namespace
}  // namespace ptq

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  ptq::set_num_threads(threads);
  omp_set_num_threads(threads);
  fmt::print("{} threads\n", threads);
  ptq::bench(4096, 4096, 4096);
  ptq::bench(2048, 1024, 4096);
  ptq::bench(2048, 4096, 1024);
  ptq::bench(8, 4096, 4096);
  ptq::bench_attention(8, 512, {.heads = 16, .kv_heads = 8, .head_dim = 64, .v_head_dim = 64, .scale = 0.125f});
  ptq::bench_attention(2, 2048, {.heads = 16, .kv_heads = 8, .head_dim = 128, .v_head_dim = 128, .scale = 0.088f});
}
