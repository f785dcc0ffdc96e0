// Gram matrices: half of their tiles as products, the other half as mirror images.

#include <algorithm>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/cpu_search_ops.h"
#include "kernels/cpu/packed_panels.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/transpose_tile.h"

namespace ptq::kernels::cpu {

namespace {

/// Calls keep the memory of a micro-batch up to this size for the next one: asking the system for it takes a tenth of their time.
constexpr int64_t kKeptBytes = int64_t{64} << 20;

int64_t tiles_of(int64_t columns) { return (columns + kGramTile - 1) / kGramTile; }

/// Rows [begin, end) of a column of tiles, all of one tile.
struct Piece {
  int64_t begin, end, column;
};

/// What of the computed tiles lies in rows [begin, end), in pieces of at most `rows` rows. Neighbours share their columns.
std::vector<Piece> pieces_of(int64_t columns, int64_t begin, int64_t end, int64_t rows) {
  const int64_t tiles = tiles_of(columns);
  std::vector<Piece> pieces;
  for (int64_t column = 0; column < tiles; ++column)
    for (int64_t tile = begin / kGramTile; tile * kGramTile < end; ++tile) {
      if (!is_gram_tile_computed(tile, column, tiles)) continue;
      const int64_t last = std::min(end, (tile + 1) * kGramTile);
      for (int64_t row = std::max(begin, tile * kGramTile); row < last; row += rows)
        pieces.push_back({row, std::min(last, row + rows), column});
    }
  return pieces;
}

/// to[j][i] = from[i][j]: rows x columns of `from`, both with rows `stride` apart.
void mirror(const float* from, int64_t rows, int64_t columns, float* to, int64_t stride) {
  constexpr int kSide = kTileSide<float>;
  alignas(64) float tile[kSide * kSide], edge[kSide * kSide];
  for (int64_t c = 0; c < columns; c += kSide)
    for (int64_t r = 0; r < rows; r += kSide) {
      const int tile_rows = static_cast<int>(std::min<int64_t>(kSide, rows - r));
      const int tile_columns = static_cast<int>(std::min<int64_t>(kSide, columns - c));
      const float* const corner = from + r * stride + c;
      if (tile_rows == kSide && tile_columns == kSide) {
        transpose_tile(corner, stride, tile);
      } else {
        for (int i = 0; i < tile_rows; ++i) std::copy_n(corner + i * stride, tile_columns, edge + i * kSide);
        std::fill(edge + tile_rows * kSide, edge + kSide * kSide, 0.0f);
        transpose_tile(edge, kSide, tile);
      }
      store_tile(tile, tile_rows, tile_columns, to + c * stride + r, stride);
    }
}

}  // namespace

void gram_add(const Tensor& x, int64_t begin, int64_t end, Tensor& gram) {
  require(x.rank() == 2 && (x.dtype() == DType::kBF16 || x.dtype() == DType::kF32), "gram_add: x is not [T, C] of bf16 or f32");
  const int64_t tokens = x.dim(0), columns = x.dim(1);
  require(0 <= begin && begin <= end && end <= columns, "gram_add: rows outside of the gram matrix");
  require(gram.rank() == 2 && gram.dim(0) == end - begin && gram.dim(1) == columns, "gram_add: gram is not [end - begin, C]");
  if (tokens == 0 || begin == end) return;

  const bool is_bf16 = x.dtype() == DType::kBF16;
  thread_local Scratch kept[2];
  Scratch own[2];
  Scratch* const scratch_of_call = x.bytes() > kKeptBytes ? own : kept;
  scratch_of_call[0].floats(x.bytes() / 4 + 1);
  Tensor channels = scratch_of_call[0].tensor().as({columns, tokens}, x.dtype());
  cpu::transpose(x, channels);
  PackedPanels panels(product_kernels(is_bf16), is_bf16, scratch_of_call[1]);
  panels.pack(channels.raw(), tokens, columns, tokens);

  // Enough pieces that no thread waits long for the last one.
  int64_t rows = kGramTile;
  std::vector<Piece> pieces = pieces_of(columns, begin, end, rows);
  while (num_threads() > 1 && static_cast<int64_t>(pieces.size()) < 8 * num_threads() && rows > 2 * panels.tile_rows()) {
    rows = (rows / 2 + panels.tile_rows() - 1) / panels.tile_rows() * panels.tile_rows();
    pieces = pieces_of(columns, begin, end, rows);
  }
  float* const sums = gram.data<float>();
  parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t task) {
    const Piece& piece = pieces[static_cast<size_t>(task)];
    const int64_t first = piece.column * kGramTile, last = std::min(columns, first + kGramTile);
    thread_local Scratch scratch;
    float* const product = scratch.floats(kGramTile * kGramTile);
    float* const to = sums + (piece.begin - begin) * columns + first;
    panels.multiply(channels.raw() + piece.begin * channels.row_bytes(), tokens, piece.end - piece.begin, first, last, product, kGramTile,
                    true, {.data = to, .stride = columns});
    for (int64_t row = 0; row < piece.end - piece.begin; ++row)
      row_kernels().add(to + row * columns, product + row * kGramTile, last - first);
  });
}

void gram_complete(Tensor& gram) {
  const int64_t columns = gram.dim(0), tiles = tiles_of(columns);
  require(gram.rank() == 2 && gram.dim(1) == columns, "gram_complete: gram is not [C, C]");
  float* const values = gram.data<float>();
  parallel_for(tiles * tiles, [&](int64_t task) {
    const int64_t row = task / tiles, column = task % tiles;
    if (is_gram_tile_computed(row, column, tiles)) return;
    const int64_t r = row * kGramTile, c = column * kGramTile;
    mirror(values + c * columns + r, std::min(kGramTile, columns - c), std::min(kGramTile, columns - r), values + r * columns + c, columns);
  });
}

void scale_gram(Tensor& gram, const Tensor& factors) {
  const int64_t columns = gram.dim(0);
  require(gram.rank() == 2 && gram.dim(1) == columns && factors.numel() == columns, "scale_gram: gram [C, C] and factors [C] do not fit");
  float* const values = gram.data<float>();
  const float* const by = factors.data<float>();
  parallel_ranges(columns, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) row_kernels().scale_by(values + row * columns, by, by[row], columns);
  });
}

}  // namespace ptq::kernels::cpu
