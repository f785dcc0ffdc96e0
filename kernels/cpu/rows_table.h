#pragma once
// All row kernels as the plain loops of this file's instruction set make them. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/rows_backward.h"
#include "kernels/cpu/rows_feedback.h"
#include "kernels/cpu/rows_groups.h"
#include "kernels/cpu/rows_loss.h"
#include "kernels/cpu/rows_mx.h"
#include "kernels/cpu/rows_native.h"
#include "kernels/cpu/rows_norm.h"
#include "kernels/cpu/rows_quantize.h"
#include "kernels/cpu/rows_route.h"
#include "kernels/cpu/rows_search.h"
#include "kernels/cpu/rows_statistics.h"

namespace ptq::kernels::cpu {
namespace {

constexpr RowKernels kPlainRows = {
    .widen = widen,
    .narrow = narrow,
    .rms_norm = rms_norm,
    .layer_norm_1p = layer_norm_1p,
    .rope_half = rope_half,
    .rope_interleaved = rope_interleaved,
    .silu_mul = silu_mul,
    .clamped_gate = clamped_gate,
    .relu_squared = relu_squared,
    .add = add,
    .add_scaled = add_scaled,
    .scale = scale,
    .sigmoid = sigmoid,
    .softmax = softmax,
    .rms_norm_backward = rms_norm_backward,
    .layer_norm_1p_backward = layer_norm_1p_backward,
    .silu_mul_backward = silu_mul_backward,
    .clamped_gate_backward = clamped_gate_backward,
    .relu_squared_backward = relu_squared_backward,
    .scaled_exp = scaled_exp,
    .bin_squared_products = bin_squared_products,
    .max_magnitude = max_magnitude,
    .quantize_fp8 = quantize_fp8,
    .quantize_nvfp4 = quantize_nvfp4,
    .quantize_nvfp4_static = quantize_nvfp4_static,
    .dequantize_fp8 = dequantize_fp8,
    .dequantize_nvfp4 = dequantize_nvfp4,
    .fake_quantize_fp8 = fake_quantize_fp8,
    .fake_quantize_nvfp4 = fake_quantize_nvfp4,
    .max_magnitudes = max_magnitudes,
    .quantize_fp8_groups = quantize_fp8_groups,
    .quantize_int8_groups = quantize_int8_groups,
    .quantize_int4_groups = quantize_int4_groups,
    .dequantize_fp8_groups = dequantize_fp8_groups,
    .dequantize_int_groups = dequantize_int_groups,
    .fake_quantize_fp8_groups = fake_quantize_fp8_groups,
    .fake_quantize_int8_groups = fake_quantize_int8_groups,
    .fake_quantize_int8 = fake_quantize_int8,
    .pack_int4_pair = pack_int4_pair,
    .unpack_int4_pair = unpack_int4_pair,
    .pack_int4_words = pack_int4_words,
    .unpack_int4_words = unpack_int4_words,
    .quantize_mxfp8 = quantize_mxfp8,
    .quantize_mxfp4 = quantize_mxfp4,
    .dequantize_mxfp8 = dequantize_mxfp8,
    .dequantize_mxfp4 = dequantize_mxfp4,
    .fake_quantize_mxfp8 = fake_quantize_mxfp8,
    .fake_quantize_mxfp4 = fake_quantize_mxfp4,
    .make_fp8_table = make_fp8_table,
    .look_up_fp8 = look_up_fp8,
    .decode_mxfp4 = decode_mxfp4,
    .max = max,
    .sum_exp = sum_exp,
    .agreement = agreement,
    .column_maxima = column_maxima,
    .column_sums = column_sums,
    .dot = dot,
    .scale_by = scale_by,
    .factor_block = factor_block,
    .feed_back = feed_back,
    .descend = descend,
    .rounding_errors = rounding_errors,
    .add_dots = add_dots,
    .search_nvfp4 = search_nvfp4,
};

}  // namespace
}  // namespace ptq::kernels::cpu
