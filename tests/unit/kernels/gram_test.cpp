// Gram matrices, against the matrix product and against f64.

#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "tests/support/reference_ops.h"
#include "tests/support/reference_search.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor, test::same_bits;

int64_t tiles_of(int64_t columns) { return (columns + kGramTile - 1) / kGramTile; }
bool is_computed(int64_t i, int64_t j, int64_t columns) { return is_gram_tile_computed(i / kGramTile, j / kGramTile, tiles_of(columns)); }

Tensor filled(int64_t rows, int64_t columns, float value) {
  Tensor tensor = Tensor::empty({rows, columns}, DType::kF32);
  std::fill_n(tensor.data<float>(), tensor.numel(), value);
  return tensor;
}

/// gram_add of two micro-batches into a matrix of ones, as sums of what matmul gives.
Tensor two_calls_by_matmul(const Tensor& first, const Tensor& second) {
  const int64_t columns = first.dim(1);
  Tensor gram = filled(columns, columns, 1.0f), product = Tensor::empty({columns, columns}, DType::kF32);
  for (const Tensor* x : {&first, &second}) {
    Tensor channels = Tensor::empty({columns, x->dim(0)}, x->dtype());
    transpose(*x, channels);
    matmul(channels, channels, {}, product);
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t j = 0; j < columns; ++j)
        if (is_computed(i, j, columns)) gram.data<float>()[i * columns + j] += product.data<float>()[i * columns + j];
  }
  return gram;
}

TEST(GramTiles, EveryPairIsComputedOnceAndRowsAreBalanced) {
  for (int64_t tiles = 1; tiles < 12; ++tiles)
    for (int64_t row = 0; row < tiles; ++row) {
      int64_t of_row = 0;
      for (int64_t column = 0; column < tiles; ++column) {
        of_row += is_gram_tile_computed(row, column, tiles);
        const int both = is_gram_tile_computed(row, column, tiles) + is_gram_tile_computed(column, row, tiles);
        EXPECT_EQ(both, row == column ? 2 : 1);
      }
      EXPECT_GE(of_row, tiles / 2);
      EXPECT_LE(of_row, tiles / 2 + 1);
    }
}

TEST(GramAdd, AddsWhatMatmulGivesToItsTilesAndTouchesNoOthers) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t columns : {1, 37, 256, 300, 1030})
      for (const int threads : {1, 2}) {
        const test::ThreadsGuard guard(threads);
        const Tensor first = random_tensor({33, columns}, dtype, 1), second = random_tensor({columns > 600 ? 523 : 65, columns}, dtype, 2);
        Tensor gram = filled(columns, columns, 1.0f);

        gram_add(first, 0, columns, gram);
        gram_add(second, 0, columns, gram);

        ASSERT_TRUE(same_bits(gram, two_calls_by_matmul(first, second))) << columns << " " << threads;
      }
}

TEST(GramAdd, OfAnyRowsGivesThoseOfTheWhole) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const int64_t columns = 1030;
    const Tensor x = random_tensor({40, columns}, dtype, 3);
    Tensor whole = filled(columns, columns, 0.0f), parts = filled(columns, columns, 0.0f);
    gram_add(x, 0, columns, whole);

    const test::ThreadsGuard guard(2);
    const std::vector<int64_t> cuts = {0, 1, 255, 257, 257, 700, columns};
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      Tensor part = parts.rows(cuts[i], cuts[i + 1]);
      gram_add(x, cuts[i], cuts[i + 1], part);
    }

    EXPECT_TRUE(same_bits(parts, whole));
  }
}

TEST(GramComplete, MakesTheWholeGramMatrix) {
  for (const int64_t columns : {1, 37, 257, 523, 1030})
    for (const int threads : {1, 2}) {
      const test::ThreadsGuard guard(threads);
      const Tensor x = random_tensor({19, columns}, DType::kF32, 4);
      Tensor gram = filled(columns, columns, 0.0f);
      gram_add(x, 0, columns, gram);

      gram_complete(gram);

      const float* const values = gram.data<float>();
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t j = 0; j < i; ++j) ASSERT_EQ(values[i * columns + j], values[j * columns + i]) << i << " " << j;
      ASSERT_LT(test::relative_error(gram, test::gram_in_f64(x)), 1e-6);
    }
}

TEST(ScaleGram, KeepsTheMatrixSymmetric) {
  const int64_t columns = 131;
  const Tensor x = random_tensor({64, columns}, DType::kF32, 5), factors = random_tensor({columns}, DType::kF32, 6);
  Tensor before = filled(columns, columns, 0.0f);
  gram_add(x, 0, columns, before);
  gram_complete(before);
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    Tensor gram = Tensor::empty({columns, columns}, DType::kF32);
    std::copy_n(before.data<float>(), before.numel(), gram.data<float>());

    scale_gram(gram, factors);

    const float *const values = gram.data<float>(), *const by = factors.data<float>();
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        ASSERT_EQ(values[i * columns + j], before.data<float>()[i * columns + j] * (by[i] * by[j]));
        ASSERT_EQ(values[i * columns + j], values[j * columns + i]);
      }
  }
}

TEST(Gram, RejectsShapesThatDoNotFit) {
  const Tensor x = Tensor::zeros({3, 5}, DType::kF32);
  Tensor square = Tensor::zeros({5, 5}, DType::kF32), wide = Tensor::zeros({4, 5}, DType::kF32);

  EXPECT_THROW(gram_add(x, 0, 4, square), Error);
  EXPECT_THROW(gram_add(x, 2, 6, wide), Error);
  EXPECT_THROW(gram_complete(wide), Error);
  EXPECT_THROW(scale_gram(square, Tensor::zeros({4}, DType::kF32)), Error);
}

}  // namespace
}  // namespace ptq::kernels
