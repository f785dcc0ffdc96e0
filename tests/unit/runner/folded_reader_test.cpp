#include "runner/folded_reader.h"

#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "runner/mixed_reader.h"
#include "tests/support/expect_error.h"
#include "tests/support/memory_reader.h"
#include "tests/support/reference_ops.h"

namespace ptq::runner {
namespace {

using test::MemoryReader, test::tensor_of, test::random_tensor, test::values_of;

/// w[r, c]·rows[r]·columns[c].
std::vector<float> scaled(const Tensor& w, const std::vector<float>& rows, const std::vector<float>& columns) {
  std::vector<float> values = values_of(w);
  for (size_t i = 0; i < values.size(); ++i) values[i] *= rows[i / columns.size()] * columns[i % columns.size()];
  return values;
}

std::vector<float> read_values(const checkpoint::Reader& reader, const std::string& name) {
  return values_of(kernels::converted(reader.read(name), DType::kF32));
}

TEST(FoldedReader, ScalesRowsAndColumnsOfEveryDtype) {
  const std::vector<float> rows{2, 0.25f, 1, 8, 1}, columns{0.5f, 4, 1};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Tensor w = kernels::converted(random_tensor({5, 3}, DType::kF32, 1, 1.0f), dtype);
    auto inner = std::make_unique<MemoryReader>();
    inner->add("w", w);
    inner->add("plain", w);
    FoldExponents folds;
    folds.scale_rows("w", tensor_of(rows, {5}));
    folds.scale_columns("w", tensor_of(columns, {3}));

    const auto reader = open_folded(std::move(inner), std::move(folds));

    const Tensor wide = kernels::converted(w, DType::kF32);
    EXPECT_EQ(read_values(*reader, "w"), scaled(wide, rows, columns));
    EXPECT_EQ(read_values(*reader, "plain"), values_of(wide));
    Tensor part = Tensor::empty({2, 3}, dtype);
    reader->read_rows(reader->at("w"), 2, 4, part.raw());
    EXPECT_EQ(values_of(kernels::converted(part, DType::kF32)), scaled(wide.rows(2, 4), {1, 8}, columns));
  }
}

TEST(FoldedReader, ScalesVectorsInParts) {
  auto inner = std::make_unique<MemoryReader>();
  inner->add("norm", tensor_of({1, 2, 3, 4}, {4}));
  FoldExponents folds;
  folds.scale_columns("norm", tensor_of({2, 1, 0.5f, 4}, {4}));
  const auto reader = open_folded(std::move(inner), std::move(folds));

  EXPECT_EQ(read_values(*reader, "norm"), (std::vector<float>{2, 2, 1.5f, 16}));
  std::vector<float> part(2);
  reader->read_rows(reader->at("norm"), 2, 4, reinterpret_cast<std::byte*>(part.data()));
  EXPECT_EQ(part, (std::vector<float>{1.5f, 16}));
}

TEST(FoldedReader, ScalesTheMatricesOfAStackEachByItsOwn) {
  const Tensor stack = random_tensor({3, 2, 4}, DType::kF32, 2, 1.0f);
  auto inner = std::make_unique<MemoryReader>();
  inner->add("experts", stack);
  FoldExponents folds;
  for (int64_t e = 0; e < 3; ++e) folds.scale_rows("experts", tensor_of({4, 0.5f}, {2}), 3, e);
  folds.scale_columns("experts", tensor_of({1, 2, 4, 8}, {4}), 3, 1);
  const auto reader = open_folded(std::move(inner), std::move(folds));

  const auto of = [&](int64_t e) { return stack.rows(e, e + 1).reshaped({2, 4}); };
  Tensor part = Tensor::empty({2, 2, 4}, DType::kF32);
  reader->read_rows(reader->at("experts"), 1, 3, part.raw());
  EXPECT_EQ(values_of(part.rows(0, 1)), scaled(of(1), {4, 0.5f}, {1, 2, 4, 8}));
  EXPECT_EQ(values_of(part.rows(1, 2)), scaled(of(2), {4, 0.5f}, {1, 1, 1, 1}));
}

TEST(FoldExponents, AddUpAndRefuseWhatIsNoPowerOfTwo) {
  FoldExponents folds;
  folds.scale_columns("w", tensor_of({2, 4}, {2}));
  folds.scale_columns("w", tensor_of({0.5f, 8}, {2}));
  FoldExponents more;
  more.scale_columns("w", tensor_of({1, 2}, {2}));
  folds.add(more);
  ASSERT_NE(folds.find("w"), nullptr);
  EXPECT_EQ(folds.find("w")->columns, (std::vector<int8_t>{0, 6}));
  EXPECT_EQ(folds.find("v"), nullptr);
  test::expect_error(ErrorKind::kBug, "no power of two", [&] { folds.scale_rows("w", tensor_of({3}, {1})); });
}

TEST(MixedReader, ReadsEveryTensorWhereItLies) {
  MemoryReader one, other;
  one.add("a", tensor_of({1, 2}, {2}));
  one.add("b", tensor_of({3}, {1}));
  other.add("b", tensor_of({4}, {1}));
  const auto mixed = open_mixed({{"a", &one}, {"b", &other}});

  EXPECT_EQ(values_of(mixed->read("a")), (std::vector<float>{1, 2}));
  EXPECT_EQ(values_of(mixed->read("b")), (std::vector<float>{4}));
  EXPECT_EQ(mixed->tensors().size(), 2u);
}

}  // namespace
}  // namespace ptq::runner
