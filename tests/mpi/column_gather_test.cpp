#include "layers/column_gather.h"

#include <gtest/gtest.h>

#include "tests/mpi/world.h"

namespace ptq::layers {
namespace {

using test::world;

/// The element at a token and a column of the whole, the same on every rank.
float value(int64_t token, int64_t column) { return static_cast<float>(token * 1000 + column); }

void expect_gathered(const std::vector<int64_t>& widths, int64_t tokens, DType dtype) {
  int64_t first = 0, total = 0;
  for (int r = 0; r < world().size(); ++r) {
    if (r < world().rank()) first += widths[static_cast<size_t>(r)];
    total += widths[static_cast<size_t>(r)];
  }
  const int64_t mine = widths[static_cast<size_t>(world().rank())];
  const Tensor local = Tensor::empty({tokens, mine}, dtype);
  const auto at = [&](const Tensor& tensor, int64_t i) -> float {
    return dtype == DType::kF32 ? tensor.data<float>()[i] : to_float(tensor.data<BF16>()[i]);
  };
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < mine; ++c) {
      if (dtype == DType::kF32)
        local.data<float>()[t * mine + c] = value(t, first + c);
      else
        local.data<BF16>()[t * mine + c] = to_bf16(value(t, first + c));
    }
  Workspace workspace;

  const Tensor whole = gather_columns(world(), local, widths, "x", workspace);

  EXPECT_EQ(whole.shape(), (Shape{tokens, total}));
  EXPECT_EQ(whole.dtype(), dtype);
  int64_t wrong = 0;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < total; ++c) {
      const float expected = dtype == DType::kF32 ? value(t, c) : round_to_bf16(value(t, c));
      wrong += at(whole, t * total + c) != expected;
    }
  EXPECT_EQ(wrong, 0);
}

TEST(GatherColumns, PutsUnevenSlicesSideBySide) {
  std::vector<int64_t> widths{5, 17, 1};
  widths.resize(static_cast<size_t>(world().size()));

  expect_gathered(widths, 7, DType::kF32);
  expect_gathered(widths, 300, DType::kBF16);
  expect_gathered(widths, 1, DType::kF32);
}

TEST(GatherColumns, ARankMayHaveNoColumns) {
  for (int empty = 0; empty < world().size(); ++empty) {
    std::vector<int64_t> widths(static_cast<size_t>(world().size()), 6);
    widths[static_cast<size_t>(empty)] = 0;

    expect_gathered(widths, 70, DType::kF32);
  }
}

TEST(GatherColumns, OneRankKeepsItsOwnTensor) {
  const auto self = world().split(world().rank(), 0);
  const Tensor local = Tensor::zeros({3, 4}, DType::kF32);
  Workspace workspace;

  EXPECT_EQ(gather_columns(*self, local, {4}, "x", workspace).raw(), local.raw());
}

}  // namespace
}  // namespace ptq::layers
