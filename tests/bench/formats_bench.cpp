// How fast the ops that are bound by memory are, in bytes read and written per second beside memcpy in the same run. Usage: formats_bench
// [threads]

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#include "kernels/core/thread_pool.h"
#include "kernels/ops.h"

namespace ptq {
namespace {

void report(const char* name, int64_t bytes, const std::function<void()>& body) {
  double best = 1e30;
  for (int run = 0; run < 6; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (run > 0) best = std::min(best, took.count());
  }
  const double rate = 1e-9 * static_cast<double>(bytes) / best;
  static const double copied = rate;  // the first line is memcpy's
  fmt::print("{:26} {:6.1f} GB/s   {:4.2f} of memcpy   {:6.2f} ms\n", name, rate, rate / copied, 1e3 * best);
}

/// w bf16 and x f32, both [rows, columns]; codes [rows, columns] and packed [rows, columns/2] take what comes out.
void bench_formats(const Tensor& w, Tensor& x, Tensor& codes, Tensor& packed) {
  const int64_t rows = w.dim(0), columns = w.dim(1), count = rows * columns;
  const kernels::ScaleBlock block, group{.rows = 1, .columns = 128};
  Tensor row_scales = Tensor::empty({rows}, DType::kF32), block_scales = Tensor::empty({rows / 128, columns / 128}, DType::kF32);
  Tensor group_scales = Tensor::empty({rows, columns / 128}, DType::kF32), words = Tensor::empty({rows, columns / 8}, DType::kI32);
  Tensor exponents = Tensor::empty({rows, columns / 32}, DType::kU8);
  report("row_amax bf16", 2 * count, [&] { kernels::row_amax(w, row_scales); });
  report("block_amax bf16", 2 * count, [&] { kernels::block_amax(w, block, block_scales); });
  report("group amax bf16", 2 * count, [&] { kernels::block_amax(w, group, group_scales); });
  for (Tensor* scales : {&row_scales, &block_scales, &group_scales}) kernels::amaxes_to_scales(*scales, 448.0f);
  report("quantize_fp8_rows bf16", 3 * count, [&] { kernels::quantize_fp8_rows(w, row_scales, codes); });
  report("quantize_fp8_blocks bf16", 3 * count, [&] { kernels::quantize_fp8_blocks(w, block_scales, block, codes); });
  report("dequantize_fp8_blocks", 5 * count, [&] { kernels::dequantize_fp8_blocks(codes, block_scales, block, x); });
  report("fake_quantize_fp8 tokens", 8 * count, [&] { kernels::fake_quantize_fp8_groups(x, columns); });
  report("fake_quantize_fp8 128s", 8 * count, [&] { kernels::fake_quantize_fp8_groups(x, 128); });
  report("quantize_int8_rows bf16", 3 * count, [&] { kernels::quantize_int8_rows(w, row_scales, codes); });
  report("dequantize_int8_rows", 5 * count, [&] { kernels::dequantize_int8_rows(codes, row_scales, x); });
  report("fake_quantize_int8", 8 * count, [&] { kernels::fake_quantize_int8(x, 1.0f / 127); });
  report("quantize_int4_groups bf16", 3 * count, [&] { kernels::quantize_int4_groups(w, group_scales, 128, codes); });
  report("pack_int4_row_pairs", count + count / 2, [&] { kernels::pack_int4_row_pairs(codes, packed); });
  report("pack_int4_words", count + count / 2, [&] { kernels::pack_int4_words(codes, words); });
  report("unpack_int4_row_pairs", count + count / 2, [&] { kernels::unpack_int4_row_pairs(packed, codes); });
  report("unpack_int4_words", count + count / 2, [&] { kernels::unpack_int4_words(words, codes); });
  report("dequantize_int4_groups", 5 * count, [&] { kernels::dequantize_int4_groups(codes, group_scales, 128, x); });
  report("quantize_mxfp8 bf16", 3 * count + count / 32, [&] { kernels::quantize_mxfp8(w, codes, exponents); });
  report("dequantize_mxfp8", 5 * count + count / 32, [&] { kernels::dequantize_mxfp8(codes, exponents, x); });
  report("fake_quantize_mxfp8", 8 * count, [&] { kernels::fake_quantize_mxfp8(x); });
  report("quantize_mxfp4 bf16", 2 * count + count / 2 + count / 32, [&] { kernels::quantize_mxfp4(w, packed, exponents); });
  report("dequantize_mxfp4", 4 * count + count / 2 + count / 32, [&] { kernels::dequantize_mxfp4(packed, exponents, x); });
  report("fake_quantize_mxfp4", 8 * count, [&] { kernels::fake_quantize_mxfp4(x); });
}

void bench() {
  // Larger than the caches: 128 MiB in bf16.
  const int64_t rows = 8192, columns = 8192, count = rows * columns;
  Tensor x = Tensor::empty({rows, columns}, DType::kF32), w = Tensor::empty({rows, columns}, DType::kBF16);
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    x.data<float>()[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  kernels::convert(x, w);
  Tensor codes = Tensor::zeros({rows, columns}, DType::kF8E4M3), packed = Tensor::zeros({rows, columns / 2}, DType::kU8);
  Tensor scales = Tensor::zeros({rows, columns / 16}, DType::kF8E4M3), copy = Tensor::zeros({rows, columns}, DType::kBF16);
  const Tensor norm = x.rows(0, 1).reshaped({columns});

  report("copy (memcpy)", 4 * count, [&] {
    parallel_ranges(w.bytes(), 1 << 20,
                    [&](int64_t b, int64_t e) { std::memcpy(copy.raw() + b, w.raw() + b, static_cast<size_t>(e - b)); });
  });
  report("amax bf16", 2 * count, [&] { kernels::amax(w); });
  report("amax f32", 4 * count, [&] { kernels::amax(x); });
  report("convert f32 -> bf16", 6 * count, [&] { kernels::convert(x, copy); });
  report("convert bf16 -> f32", 6 * count, [&] { kernels::convert(w, x); });
  report("quantize_fp8 bf16", 3 * count, [&] { kernels::quantize_fp8(w, 0.01f, kernels::Fp8Quotient::kExact, codes); });
  report("quantize_nvfp4 bf16", 2 * count + count / 2 + count / 16, [&] { kernels::quantize_nvfp4(w, 1.0f / 2688, packed, scales); });
  report("quantize_nvfp4 f32", 4 * count + count / 2 + count / 16, [&] { kernels::quantize_nvfp4(x, 1.0f / 2688, packed, scales); });
  report("dequantize_nvfp4", 4 * count + count / 2 + count / 16, [&] { kernels::dequantize_nvfp4(packed, scales, 1.0f / 2688, x); });
  report("fake_quantize_nvfp4", 8 * count, [&] { kernels::fake_quantize_nvfp4(x, 1.0f / 2688); });
  report("fake_quantize_fp8", 8 * count, [&] { kernels::fake_quantize_fp8(x, 1.0f / 448); });
  bench_formats(w, x, codes, packed);
  report("rms_norm f32 -> bf16", 6 * count, [&] { kernels::rms_norm(x, norm, 1e-5f, copy); });
  report("silu_mul f32 -> bf16", 10 * count, [&] { kernels::silu_mul(x, x, copy); });
  Tensor labels = Tensor::zeros({rows}, DType::kI32);
  std::vector<double> losses;
  std::vector<kernels::TokenAgreement> agreement;
  report("token_losses", 4 * count, [&] { kernels::token_losses(x, labels, losses); });
  report("token_agreement", 8 * count, [&] { kernels::token_agreement(x, x, agreement); });
}

}  // namespace
}  // namespace ptq

int main(int argc, char** argv) {
  ptq::set_num_threads(argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency()));
  fmt::print("{} threads\n", ptq::num_threads());
  ptq::bench();
}
