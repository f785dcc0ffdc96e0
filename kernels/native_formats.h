#pragma once
// Weights as their publishers quantized them, widened to bf16 on the way in. These run on the calling thread alone, so that a reader
// thread may use them beside the compute pool.

#include <cstdint>

#include "kernels/core/dtype.h"

namespace ptq::kernels {

/// E4M3 codes with one f32 scale per block of weights: w = bf16(e4m3(code)·scale), one rounding, nearest even.
struct BlockFp8 {
  int64_t block_rows = 128, block_columns = 128;
  int64_t columns = 0;  ///< C of the weight [O, C]; the last block of a row or column may be partial
};
/// Rows [first_row, first_row + rows) of the weight. codes [rows, C]; scales: the grid [⌈O/block_rows⌉, ⌈C/block_columns⌉] from the row of
/// blocks that holds first_row on; out [rows, C] bf16.
void decode_block_fp8(const uint8_t* codes, int64_t first_row, int64_t rows, const float* scales, const BlockFp8& shape, uint16_t* out);

/// MXFP4: blocks of 32 inputs, 16 bytes of E2M1 codes (even element in the low nibble) and one E8M0 scale byte each:
/// w = e2m1(code)·2^(scale - 127), exact in bf16 unless it leaves its range. Rows are outputs.
///   blocks [O, C/32, 16], scales [O, C/32] -> out [C, O] bf16: transposed, as bf16 checkpoints store stacked experts
void decode_mxfp4_transposed(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t columns, uint16_t* out);

}  // namespace ptq::kernels
