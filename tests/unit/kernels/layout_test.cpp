#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor;

Tensor random_bytes(Shape shape, DType dtype) {
  Tensor tensor = Tensor::empty(std::move(shape), dtype);
  const Tensor noise = random_tensor({tensor.bytes() / 4 + 1}, DType::kF32, 1);
  std::memcpy(tensor.raw(), noise.raw(), static_cast<size_t>(tensor.bytes()));
  return tensor;
}

TEST(Transpose, MovesEveryElementOfEveryWidth) {
  for (const DType dtype : {DType::kU8, DType::kF8E4M3, DType::kBF16, DType::kF32})
    for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {1, 77}, {77, 1}, {15, 17}, {16, 16}, {33, 130}, {64, 64}, {65, 127}, {130, 2100}, {2100, 130}, {700, 5}}) {
      const Tensor x = random_bytes({rows, columns}, dtype);
      Tensor out = Tensor::empty({columns, rows}, dtype);
      const test::ThreadsGuard guard(2);

      transpose(x, out);

      const int64_t width = dtype_bytes(dtype);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c)
          ASSERT_EQ(0, std::memcmp(out.raw() + (c * rows + r) * width, x.raw() + (r * columns + c) * width, static_cast<size_t>(width)))
              << width << " bytes, " << rows << " x " << columns << ": " << r << ", " << c;
    }
}

TEST(Transpose, RejectsOtherShapesAndDtypes) {
  const Tensor x = Tensor::zeros({3, 5}, DType::kBF16);
  Tensor same_shape = Tensor::zeros({3, 5}, DType::kBF16), other_dtype = Tensor::zeros({5, 3}, DType::kF16);
  Tensor wide = Tensor::zeros({5, 3}, DType::kI64);

  EXPECT_THROW(transpose(x, same_shape), Error);
  EXPECT_THROW(transpose(x, other_dtype), Error);
  EXPECT_THROW(transpose(Tensor::zeros({3, 5}, DType::kI64), wide), Error);
}

TEST(SliceColumns, CopiesAStretchOfEveryRow) {
  const Tensor x = random_tensor({33, 13}, DType::kF32, 2);
  Tensor out = Tensor::empty({33, 5}, DType::kF32);

  slice_columns(x, 8, out);

  for (int64_t t = 0; t < 33; ++t)
    for (int64_t c = 0; c < 5; ++c) ASSERT_EQ(out.data<float>()[t * 5 + c], x.data<float>()[t * 13 + 8 + c]);
  EXPECT_THROW(slice_columns(x, 9, out), Error);
}

TEST(SliceColumns, AndPlaceColumnsMoveElementsOfAnyWidth) {
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
    const Tensor x = Tensor::zeros({9, 11}, dtype);
    for (int64_t i = 0; i < x.bytes(); ++i) x.raw()[i] = static_cast<std::byte>(i * 37 % 251);
    Tensor middle = Tensor::empty({9, 4}, dtype), copy = Tensor::zeros({9, 11}, dtype);
    for (const auto& [begin, width] : {std::pair(0, 3), std::pair(3, 4), std::pair(7, 4)}) {
      Tensor part = Tensor::empty({9, width}, dtype);
      slice_columns(x, begin, part);
      place_columns(part, begin, copy);
    }
    EXPECT_TRUE(std::equal(x.raw(), x.raw() + x.bytes(), copy.raw()));
    EXPECT_THROW(place_columns(middle, 8, copy), Error);
    Tensor other = Tensor::empty({9, 4}, DType::kI64);
    EXPECT_THROW(slice_columns(x, 0, other), Error);
  }
}

TEST(GatherColumns, AndScatterColumnsUndoEachOther) {
  const Tensor x = random_tensor({17, 5}, DType::kF32, 8);
  const std::vector<int32_t> order{3, 0, 4, 1, 2};
  Tensor ordered = Tensor::empty({17, 5}, DType::kF32), back = Tensor::empty({17, 5}, DType::kF32);

  gather_columns(x, order, ordered);
  scatter_columns(ordered, order, back);

  for (int64_t t = 0; t < 17; ++t)
    for (int64_t i = 0; i < 5; ++i) ASSERT_EQ(ordered.data<float>()[t * 5 + i], x.data<float>()[t * 5 + order[static_cast<size_t>(i)]]);
  EXPECT_EQ(test::values_of(back), test::values_of(x));
  EXPECT_THROW(gather_columns(x, {0, 1}, ordered), Error);
}

TEST(ExpandLatent, GivesEveryHeadItsOwnPartAndTheSharedRotatedOne) {
  const int64_t tokens = 19, heads = 3, nope = 7, rotary = 4, value = 5;
  const Tensor kv = random_tensor({tokens, heads * (nope + value)}, DType::kF32, 3),
               k_rot = random_tensor({tokens, rotary}, DType::kF32, 4);
  Tensor k = Tensor::empty({tokens, heads * (nope + rotary)}, DType::kF32), v = Tensor::empty({tokens, heads * value}, DType::kF32);

  expand_latent(kv, k_rot, heads, nope, k, v);

  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t head = 0; head < heads; ++head) {
      const float* const from = kv.data<float>() + (t * heads + head) * (nope + value);
      for (int64_t d = 0; d < nope + rotary; ++d)
        ASSERT_EQ(k.data<float>()[(t * heads + head) * (nope + rotary) + d],
                  d < nope ? from[d] : k_rot.data<float>()[t * rotary + d - nope]);
      for (int64_t d = 0; d < value; ++d) ASSERT_EQ(v.data<float>()[(t * heads + head) * value + d], from[nope + d]);
    }
}

}  // namespace
}  // namespace ptq::kernels
