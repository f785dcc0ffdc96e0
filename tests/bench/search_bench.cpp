// How fast the ops of searching calibrations are, in FLOP per second and as a share of what the matrix product reaches in the same run.
// Usage: search_bench [threads]

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <thread>

#include "kernels/core/thread_pool.h"
#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq {
namespace {

/// Seconds of the fastest of some runs; `prepare` is not counted.
double seconds(const std::function<void()>& prepare, const std::function<void()>& body) {
  double best = 1e30;
  for (int run = 0; run < 4; ++run) {
    prepare();
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (run > 0) best = std::min(best, took.count());
  }
  return best;
}

/// Prints the rate and returns it. Where G is symmetric, `flops` counts what one half of it needs. `beside`: the rate of the matrix
/// product, 0 for none.
double report(const std::string& name, double flops, double took, double beside) {
  const double rate = 1e-9 * flops / took;
  fmt::print("{:60} {:8.2f} ms {:8.1f} GFLOP/s", name, 1e3 * took, rate);
  if (beside > 0) fmt::print("  {:5.2f} of matmul", rate / beside);
  fmt::print("\n");
  return rate;
}

Tensor noise(Shape shape, DType dtype) {
  Tensor x = Tensor::empty(std::move(shape), DType::kF32);
  uint32_t state = 1;
  for (int64_t i = 0; i < x.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    x.data<float>()[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  if (dtype == DType::kF32) return x;
  Tensor narrow = Tensor::empty(x.shape(), dtype);
  kernels::convert(x, narrow);
  return narrow;
}
const std::function<void()> kNothing = [] {};

/// gram_add of T tokens, counted by the tiles it computes, beside the product of the channels by half of them.
void bench_gram(int64_t columns, int64_t tokens, DType dtype) {
  const Tensor x = noise({tokens, columns}, dtype), channels = noise({columns, tokens}, dtype);
  const Tensor half = channels.rows(0, columns / 2);
  Tensor gram = Tensor::zeros({columns, columns}, DType::kF32), product = Tensor::empty({columns, columns / 2}, DType::kF32);
  const double flops = static_cast<double>(columns) * static_cast<double>(columns) * static_cast<double>(tokens);
  const int64_t tiles = (columns + kernels::kGramTile - 1) / kernels::kGramTile;
  const double computed = static_cast<double>(tiles * (tiles + 1) / 2) / (0.5 * static_cast<double>(tiles * tiles));
  const std::string shape = fmt::format("C={} T={} {}", columns, tokens, dtype_name(dtype));
  const double matmul = report("matmul " + shape, flops, seconds(kNothing, [&] { kernels::matmul(channels, half, {}, product); }), 0);
  report("gram_add " + shape, flops * computed, seconds(kNothing, [&] { kernels::gram_add(x, 0, columns, gram); }), matmul);
}

/// A gram matrix of correlated channels, twice as many tokens as channels.
Tensor gram_of(int64_t columns) {
  Tensor x = noise({2 * columns, columns}, DType::kF32), gram = Tensor::zeros({columns, columns}, DType::kF32);
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t c = 1; c < columns; ++c) x.data<float>()[t * columns + c] += 0.5f * x.data<float>()[t * columns + c - 1];
  kernels::gram_add(x, 0, columns, gram);
  kernels::gram_complete(gram);
  return gram;
}

/// The rate of an f32 product of this many outputs and columns.
double f32_rate(int64_t columns) {
  const Tensor x = noise({1024, columns}, DType::kF32), w = noise({columns, columns}, DType::kF32);
  Tensor y = Tensor::empty({1024, columns}, DType::kF32);
  const double flops = 2.0 * 1024 * static_cast<double>(columns) * static_cast<double>(columns);
  return report(fmt::format("matmul T=1024 C=O={} F32", columns), flops, seconds(kNothing, [&] { kernels::matmul(x, w, {}, y); }), 0);
}

void bench_feedback(int64_t columns) {
  const double matmul = f32_rate(columns), cube = static_cast<double>(columns * columns) * static_cast<double>(columns);
  const Tensor gram = gram_of(columns);
  Tensor factor = Tensor::empty({columns, columns}, DType::kF32);
  const auto copy = [&] { std::copy_n(gram.data<float>(), gram.numel(), factor.data<float>()); };
  report(fmt::format("feedback_factor C={}", columns), cube / 3, seconds(copy, [&] { kernels::feedback_factor(factor, 0.01f); }), matmul);

  const int64_t rows = 1024, groups = columns / 128;
  const double square = static_cast<double>(rows) * static_cast<double>(columns * columns);
  const Tensor weights = noise({rows, columns}, DType::kF32);
  Tensor w = Tensor::empty(weights.shape(), DType::kF32), steps = Tensor::empty({rows, groups}, DType::kF32);
  kernels::block_amax(weights, {.rows = 1, .columns = 128}, steps);
  kernels::amaxes_to_scales(steps, 7.0f);
  std::vector<int32_t> step_of(static_cast<size_t>(columns));
  for (int64_t c = 0; c < columns; ++c) step_of[static_cast<size_t>(c)] = static_cast<int32_t>(c / 128);
  const auto restore = [&] { std::copy_n(weights.data<float>(), weights.numel(), w.data<float>()); };
  const auto feed_back = [&] { kernels::error_feedback(w, factor, steps, step_of, {}); };
  report(fmt::format("error_feedback int4 O={} C={}", rows, columns), square, seconds(restore, feed_back), matmul);

  // Every row has a code for every column, from plain rounding.
  Tensor codes = Tensor::empty({rows, columns}, DType::kI8), rounded = Tensor::empty({rows, columns}, DType::kF32);
  kernels::quantize_int4_groups(weights, steps, 128, codes);
  kernels::dequantize_int4_groups(codes, steps, 128, rounded);
  const auto start_over = [&] { std::copy_n(rounded.data<float>(), rounded.numel(), w.data<float>()); };
  for (const int passes : {1, 4})
    report(fmt::format("descend_codes int4, {} passes, O={} C={}", passes, rows, columns), 2 * square * passes,
           seconds(start_over, [&] { kernels::descend_codes(weights, w, gram, steps, step_of, {}, passes); }), matmul);
  for (const int64_t group : {int64_t{16}, int64_t{128}, columns}) {
    Tensor before = Tensor::empty({rows, columns / group}, DType::kF32), refitted = Tensor::empty(before.shape(), DType::kF32);
    kernels::block_amax(weights, {.rows = 1, .columns = group}, before);
    kernels::amaxes_to_scales(before, 7.0f);
    kernels::quantize_int4_groups(weights, before, group, codes);
    kernels::dequantize_int4_groups(codes, before, group, rounded);
    const auto reset = [&] { std::copy_n(before.data<float>(), before.numel(), refitted.data<float>()); };
    report(fmt::format("refit_steps of {}, 1 sweep, O={} C={}", group, rows, columns), 2 * square,
           seconds(reset, [&] { kernels::refit_steps(weights, rounded, gram, group, {}, 1, refitted); }), matmul);
  }

  std::vector<float> ratios;
  for (int i = 0; i < 13; ++i) ratios.push_back(1.0f - 0.04f * static_cast<float>(i));
  const double of_groups = square / static_cast<double>(groups) * 13;
  report(fmt::format("search_group_scales int4 128s, 13 ratios, O={} C={}", rows, columns), of_groups,
         seconds(kNothing, [&] { kernels::search_group_scales(weights, gram, 128, {}, 7.0f, ratios, steps); }), matmul);
  Tensor row_scales = Tensor::empty({rows, 1}, DType::kF32);
  const kernels::FeedbackGrid e4m3{.kind = kernels::FeedbackGrid::Kind::kE4M3};
  report(fmt::format("search_group_scales e4m3 rows, 13 ratios, O={} C={}", rows, columns), square * 13,
         seconds(kNothing, [&] { kernels::search_group_scales(weights, gram, columns, e4m3, 448.0f, ratios, row_scales); }), matmul);
  for (int i = 13; i < 16; ++i) ratios.push_back(1.0f + 0.04f * static_cast<float>(i - 12));
  Tensor block_scales = Tensor::empty({rows, columns / 16}, DType::kF8E4M3);
  report(fmt::format("search_nvfp4_scales, 16 ratios, O={} C={}", rows, columns), square / static_cast<double>(columns / 16) * 16,
         seconds(kNothing, [&] { kernels::search_nvfp4_scales(weights, gram, 1.0f / 2688, ratios, block_scales); }), matmul);
}

}  // namespace
}  // namespace ptq

int main(int argc, char** argv) {
  ptq::set_num_threads(argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency()));
  fmt::print("{} threads\n", ptq::num_threads());
  for (const ptq::DType dtype : {ptq::DType::kBF16, ptq::DType::kF32})
    for (const int64_t columns : {1024, 2048, 4096}) ptq::bench_gram(columns, 512, dtype);
  for (const int64_t columns : {1024, 4096}) ptq::bench_feedback(columns);
}
