#include "kernels/native_formats.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/transpose_tile.h"

namespace ptq::kernels {

void decode_block_fp8(const uint8_t* codes, int64_t first_row, int64_t rows, const float* scales, const BlockFp8& shape, uint16_t* out) {
  const cpu::RowKernels& kernels = cpu::row_kernels();
  const int64_t grid_columns = (shape.columns + shape.block_columns - 1) / shape.block_columns;
  // A block's scale makes only 128 different magnitudes. With the tables of a whole row of blocks at hand, rows are walked from end to end.
  thread_local std::vector<uint8_t> tables;
  tables.resize(static_cast<size_t>(grid_columns * cpu::kFp8TableBytes));
  const int64_t last = first_row + rows, first_grid_row = first_row / shape.block_rows;
  for (int64_t row = first_row; row < last;) {
    const int64_t grid_row = row / shape.block_rows, end = std::min((grid_row + 1) * shape.block_rows, last);
    const float* const row_scales = scales + (grid_row - first_grid_row) * grid_columns;
    for (int64_t g = 0; g < grid_columns; ++g) kernels.make_fp8_table(row_scales[g], tables.data() + g * cpu::kFp8TableBytes);
    for (; row < end; ++row) {
      const int64_t at = (row - first_row) * shape.columns;
      for (int64_t g = 0; g < grid_columns; ++g) {
        const int64_t begin = g * shape.block_columns, count = std::min(shape.block_columns, shape.columns - begin);
        kernels.look_up_fp8(codes + at + begin, count, tables.data() + g * cpu::kFp8TableBytes, out + at + begin);
      }
    }
  }
}

void decode_mxfp4_transposed(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t columns, uint16_t* out) {
  constexpr int kSide = cpu::kTileSide<uint16_t>;                 // 32 rows, and the 32 inputs of a block
  constexpr int64_t kGroup = cpu::kTilesPerRun * int64_t{kSide};  // rows that are walked together
  const cpu::RowKernels& kernels = cpu::row_kernels();
  const int64_t row_blocks = columns / kSide;
  require(columns % kSide == 0, "decode_mxfp4_transposed: blocks of 32 do not divide the columns");
  alignas(64) uint16_t decoded[kSide * kSide] = {}, tile[kSide * kSide];
  for (int64_t group = 0; group < rows; group += kGroup)
    for (int64_t b = 0; b < row_blocks; ++b)
      for (int64_t r0 = group; r0 < std::min(group + kGroup, rows); r0 += kSide) {
        const int tile_rows = static_cast<int>(std::min<int64_t>(kSide, rows - r0));
        const int64_t at = r0 * row_blocks + b;
        kernels.decode_mxfp4(blocks + at * (kSide / 2), scales + at, row_blocks, tile_rows, decoded);
        cpu::transpose_tile(decoded, kSide, tile);
        cpu::store_tile(tile, tile_rows, kSide, out + b * kSide * rows + r0, rows);
      }
}

}  // namespace ptq::kernels
