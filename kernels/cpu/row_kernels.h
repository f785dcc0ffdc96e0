#pragma once
// The inner loops of all ops but products: one row or stretch of elements on one thread, one set of functions per instruction set, all
// with the same bits. Lengths are in elements; pointers need no alignment.

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace ptq::kernels::cpu {

/// The dtypes a row of floats may have.
enum class Source : int { kF32, kBF16, kF16 };
/// Throws a bug for other dtypes.
inline Source source_of(DType dtype) {
  require(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16, "a row of floats is neither f32, bf16 nor f16");
  return dtype == DType::kF32 ? Source::kF32 : dtype == DType::kBF16 ? Source::kBF16 : Source::kF16;
}

/// Sums over one row of logits, relative to their maxima.
struct AgreementSums {
  float reference_max, max;
  double reference_sum, sum;  ///< Σ e^(logit - max)
  double cross;               ///< Σ e^(r - r_max) · ((r - r_max) - (x - x_max))
};

/// A bf16 for each of the 128 magnitudes of an E4M3 code.
constexpr int64_t kFp8TableBytes = 256;

/// A FeedbackGrid of kernels/search_ops.h.
struct Rounding {
  enum class Kind : int { kInteger, kE2M1, kE4M3 };
  Kind kind;
  float lowest, highest;  ///< of kInteger
};

/// Columns that factor_block takes at most.
constexpr int64_t kFactorBlock = 64;

struct RowKernels {
  void (*widen)(const void* in, Source source, int64_t count, float* out);
  void (*narrow)(const float* in, int64_t count, uint16_t* bf16_out);

  /// out is bf16 or f32; head norms and others may run in place.
  void (*rms_norm)(const float* x, const float* w, int64_t count, float eps, void* out, bool to_bf16);
  void (*layer_norm_1p)(const float* x, const float* w, const float* bias, int64_t count, float eps, void* out, bool to_bf16);
  /// Rotates 2·half dims from `x` on: pairs (i, i + half), or (2i, 2i + 1).
  void (*rope_half)(float* x, int64_t half, const float* cos, const float* sin);
  void (*rope_interleaved)(float* x, int64_t half, const float* cos, const float* sin);
  /// Elements of gate and up lie `stride` apart, 1 or 2.
  void (*silu_mul)(const float* gate, const float* up, int64_t stride, int64_t count, void* out, bool to_bf16);
  /// (up + 1)·gate·sigmoid(alpha·gate) of gate = min(gate, limit) and up in ±limit.
  void (*clamped_gate)(const float* gate, const float* up, int64_t stride, int64_t count, float alpha, float limit, void* out,
                       bool to_bf16);
  void (*relu_squared)(const float* x, int64_t count, void* out, bool to_bf16);
  void (*add)(float* x, const float* y, int64_t count);
  /// x += factor·y, product and sum each rounded.
  void (*add_scaled)(float* x, const float* y, int64_t count, float factor);
  /// out = factor·x, of the dtype of x: f32 or bf16. May run in place.
  void (*scale)(const void* x, Source source, int64_t count, float factor, void* out);
  /// NaN stays NaN in both; one NaN makes all of a softmax NaN.
  void (*sigmoid)(const float* x, int64_t count, float* out);
  void (*softmax)(const float* x, int64_t count, float* out);

  /// Gradients, as kernels/backward_ops.h has them for rows. dx may be dy; gate, up, dgate and dup lie `stride` apart, 1 or 2, dy not.
  void (*rms_norm_backward)(const float* x, const float* w, const float* dy, int64_t count, float eps, float* dx);
  void (*layer_norm_1p_backward)(const float* x, const float* w, const float* dy, int64_t count, float eps, float* dx);
  void (*silu_mul_backward)(const float* gate, const float* up, const float* dy, int64_t stride, int64_t count, float* dgate, float* dup);
  void (*clamped_gate_backward)(const float* gate, const float* up, const float* dy, int64_t stride, int64_t count, float alpha,
                                float limit, float* dgate, float* dup);
  void (*relu_squared_backward)(const float* x, const float* dy, int64_t count, float* dx);
  /// x = factor·e^(x - max), in place.
  void (*scaled_exp)(float* x, int64_t count, float max, float factor);
  /// As add_squared_products of kernels/backward_ops.h.
  void (*bin_squared_products)(const float* a, const float* b, int64_t count, int64_t* bins);

  /// The largest bit pattern without its sign, in the source's own width: orders finite < Inf < NaN.
  uint32_t (*max_magnitude)(const void* x, Source source, int64_t count);

  void (*quantize_fp8)(const void* w, Source source, int64_t count, float scale, bool bf16_quotient, uint8_t* codes);
  void (*quantize_nvfp4)(const void* w, Source source, int64_t count, float scale_2, uint8_t* packed, uint8_t* block_scales);
  void (*quantize_nvfp4_static)(const void* w, Source source, int64_t count, const uint8_t* block_scales, float scale_2, uint8_t* packed);
  void (*dequantize_fp8)(const uint8_t* codes, int64_t count, float scale, float* w);
  void (*dequantize_nvfp4)(const uint8_t* packed, const uint8_t* block_scales, int64_t count, float scale_2, float* w);
  void (*fake_quantize_fp8)(float* x, int64_t count, float scale);
  void (*fake_quantize_nvfp4)(float* x, int64_t count, float scale_2);

  /// amaxes[g] = max(amaxes[g], the largest magnitude of group g of the row): of NaN if it holds one, else Inf if it does.
  void (*max_magnitudes)(const void* x, Source source, int64_t count, int64_t group, float* amaxes);
  /// One row with a scale for each group of columns; the last group may be short.
  void (*quantize_fp8_groups)(const void* w, Source source, int64_t count, int64_t group, const float* scales, uint8_t* codes);
  void (*quantize_int8_groups)(const void* w, Source source, int64_t count, int64_t group, const float* scales, int8_t* codes);
  void (*quantize_int4_groups)(const void* w, Source source, int64_t count, int64_t group, const float* scales, int8_t* codes);
  void (*dequantize_fp8_groups)(const uint8_t* codes, int64_t count, int64_t group, const float* scales, float* w);
  void (*dequantize_int_groups)(const int8_t* codes, int64_t count, int64_t group, const float* scales, float* w);
  /// Scales are made from each group's own amax.
  void (*fake_quantize_fp8_groups)(float* x, int64_t count, int64_t group);
  void (*fake_quantize_int8_groups)(float* x, int64_t count, int64_t group);
  void (*fake_quantize_int8)(float* x, int64_t count, float scale);

  /// Two rows to one, and back; `count` is the columns.
  void (*pack_int4_pair)(const int8_t* even, const int8_t* odd, int64_t count, uint8_t* packed);
  void (*unpack_int4_pair)(const uint8_t* packed, int64_t count, int8_t* even, int8_t* odd);
  /// One row of codes to words of eight, and back.
  void (*pack_int4_words)(const int8_t* codes, int64_t count, int32_t* words);
  void (*unpack_int4_words)(const int32_t* words, int64_t count, int8_t* codes);

  /// Whole blocks of 32.
  void (*quantize_mxfp8)(const void* w, Source source, int64_t count, uint8_t* codes, uint8_t* scales);
  void (*quantize_mxfp4)(const void* w, Source source, int64_t count, uint8_t* packed, uint8_t* scales);
  void (*dequantize_mxfp8)(const uint8_t* codes, const uint8_t* scales, int64_t count, float* w);
  void (*dequantize_mxfp4)(const uint8_t* packed, const uint8_t* scales, int64_t count, float* w);
  void (*fake_quantize_mxfp8)(float* x, int64_t count);
  void (*fake_quantize_mxfp4)(float* x, int64_t count);

  /// bf16(e4m3(m)·scale) of the magnitudes m = 0 .. 127, kFp8TableBytes laid out as look_up_fp8 of the same instruction set likes them.
  void (*make_fp8_table)(float scale, uint8_t* table);
  /// The bf16 of each code: its magnitude's, with the sign turned where the code has one.
  void (*look_up_fp8)(const uint8_t* codes, int64_t count, const uint8_t* table, uint16_t* out);
  /// MXFP4 blocks `stride` blocks apart, one below the other: out [blocks][32] bf16, NaN where the scale is.
  void (*decode_mxfp4)(const uint8_t* packed, const uint8_t* scales, int64_t stride, int64_t blocks, uint16_t* out);

  float (*max)(const float* x, int64_t count);
  /// Σ e^(x - max) in f64.
  double (*sum_exp)(const float* x, int64_t count, float max);
  /// Fills the sums, given the maxima.
  void (*agreement)(const float* reference, const float* x, int64_t count, AgreementSums& sums);

  /// As column_amax and column_sums of kernels/search_ops.h, for `columns` columns of rows that are `stride` elements apart.
  void (*column_maxima)(const void* x, Source source, int64_t stride, int64_t rows, int64_t columns, float* amaxes);
  void (*column_sums)(const void* x, Source source, int64_t stride, int64_t rows, int64_t columns, bool absolute, int64_t* sums);
  /// As row_dots there.
  double (*dot)(const float* a, const float* b, int64_t count);
  /// x[c] *= factors[c]·factor, that product rounded first.
  void (*scale_by)(float* x, const float* factors, float factor, int64_t count);

  /// feedback_factor of a few columns, in f64: above the diagonal, h [count][count], rows `stride` apart, becomes M; pivots [count] D; and
  /// solve [count][count] D⁻¹·M⁻¹. A pivot that is not positive counts as `added`; where that is 0, its rows of solve and M's column are 0.
  void (*factor_block)(float* h, int64_t stride, int64_t count, double added, float* pivots, float* solve);
  /// error_feedback of a few columns of as many rows as there are lanes, a multiple of 16: adjusted [count][lanes], in: w and what the
  /// columns before these add to it, out: a. errors [count][lanes], in: w, out: w - q. steps [..][lanes], of which column k has step_of[k].
  void (*feed_back)(float* adjusted, float* errors, int64_t lanes, int64_t count, const float* feedback, int64_t stride, const float* steps,
                    const int32_t* step_of, const Rounding& rounding);
  /// descend_codes of a few columns, lanes as in feed_back: sums [count][lanes], in: Σ (w - q)·G of all columns but itself and the ones
  /// before it here, out: with those, overwritten. w [count][lanes]; q and errors = w - q [count][lanes] updated. gram: where G begins for
  /// these columns.
  void (*descend)(float* sums, const float* w, float* q, float* errors, int64_t lanes, int64_t count, const float* gram, int64_t stride,
                  const float* steps, const int32_t* step_of, const Rounding& rounding);

  /// errors = w - grid(w/scale)·scale, a scale for each lane; w and errors [count][lanes], lanes a multiple of 16.
  void (*rounding_errors)(const float* w, const float* scales, int64_t lanes, int64_t count, const Rounding& rounding, float* errors);
  /// sums[lane] += Σ_i a[i][lane]·b[i][lane], in order, f64.
  void (*add_dots)(const float* a, const float* b, int64_t lanes, int64_t count, double* sums);
  /// search_nvfp4_scales of one block of 16 rows, a row in each lane: w [16 columns][16]; gram [16][16], twice itself below the diagonal
  /// and not read above; scales [16]: the values of the best E4M3 codes.
  void (*search_nvfp4)(const float* w, const float* gram, float scale_2, const float* ratios, int64_t ratio_count, float* scales);
};

extern const RowKernels kRowsBaseline;
#if defined(__x86_64__)
extern const RowKernels kRowsAvx2, kRowsAvx512;
#endif

/// Those of isa().
const RowKernels& row_kernels();

}  // namespace ptq::kernels::cpu
