#include "layers/tensor_slices.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/expect_error.h"

namespace ptq::layers {
namespace {

AttentionSpec attention(int64_t heads, int64_t kv_heads) {
  AttentionSpec spec;
  spec.heads = heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = 4;
  return spec;
}

LinearSpec linear(int64_t out, Split split) {
  LinearSpec spec;
  spec.out = out;
  spec.in = 16;
  spec.split = split;
  return spec;
}

/// How many of `ranks` compute each row.
std::vector<int> readers(const LinearSpec& spec, const AttentionSpec& heads, int64_t ranks) {
  std::vector<int> counts(static_cast<size_t>(spec.out), 0);
  for (int64_t r = 0; r < ranks; ++r) {
    const auto slice = tensor_slice(spec, &heads, ranks, r);
    for (int64_t row = slice.begin; row < slice.end; ++row) ++counts[static_cast<size_t>(row)];
  }
  return counts;
}

TEST(TensorSlices, RowsAreDividedAnywhere) {
  const LinearSpec spec = linear(50, Split::kRows);

  EXPECT_EQ(tensor_slice(spec, nullptr, 3, 0), (parallel::Range{0, 17}));
  EXPECT_EQ(tensor_slice(spec, nullptr, 3, 1), (parallel::Range{17, 34}));
  EXPECT_EQ(tensor_slice(spec, nullptr, 3, 2), (parallel::Range{34, 50}));
}

TEST(TensorSlices, QueryHeadsStayWhole) {
  const AttentionSpec heads = attention(12, 4);

  EXPECT_EQ(tensor_slice(linear(48, Split::kQueryHeads), &heads, 3, 1), (parallel::Range{16, 32}));
}

TEST(TensorSlices, EveryRowBelongsToOneRankWhereHeadsSuffice) {
  for (const auto& [kv_heads, ranks] : {std::pair<int64_t, int64_t>{4, 1}, {4, 2}, {4, 4}, {6, 3}}) {
    const AttentionSpec heads = attention(12, kv_heads);

    EXPECT_EQ(readers(linear(48, Split::kQueryHeads), heads, ranks), std::vector<int>(48, 1));
    EXPECT_EQ(readers(linear(kv_heads * 4, Split::kKeyValueHeads), heads, ranks), std::vector<int>(static_cast<size_t>(kv_heads * 4), 1));
    EXPECT_TRUE(slices_partition(Split::kKeyValueHeads, &heads, ranks));
    EXPECT_TRUE(slices_partition(Split::kQueryHeads, &heads, ranks));
    EXPECT_TRUE(slices_partition(Split::kRows, &heads, ranks));
  }
}

TEST(TensorSlices, FewerKeyValueHeadsThanRanksAreShared) {
  const AttentionSpec heads = attention(12, 2);
  const LinearSpec k = linear(8, Split::kKeyValueHeads);

  // Rank r computes query heads 2r and 2r+1; heads 0-5 read kv head 0, heads 6-11 kv head 1.
  for (int64_t r = 0; r < 6; ++r) EXPECT_EQ(tensor_slice(k, &heads, 6, r), (r < 3 ? parallel::Range{0, 4} : parallel::Range{4, 8})) << r;
  EXPECT_EQ(readers(k, heads, 6), std::vector<int>(8, 3));
  EXPECT_FALSE(slices_partition(Split::kKeyValueHeads, &heads, 6));
}

TEST(TensorSlices, WholeTensorsAreOnEveryRank) {
  const AttentionSpec heads = attention(4, 4);

  EXPECT_EQ(readers(linear(7, Split::kWhole), heads, 4), std::vector<int>(7, 4));
  EXPECT_FALSE(slices_partition(Split::kWhole, &heads, 4));
  EXPECT_TRUE(slices_partition(Split::kWhole, &heads, 1));
}

ModelSpec model_with(int64_t heads, int64_t kv_heads) {
  ModelSpec model;
  model.layers.resize(2);
  model.layers[0].prefix = "model.layers.0";  // no attention: any split will do
  model.layers[1].prefix = "model.layers.1";
  model.layers[1].blocks.push_back({NormSpec{}, attention(heads, kv_heads)});
  return model;
}

TEST(CheckTensorRanks, HeadsMustDivide) {
  EXPECT_NO_THROW(check_tensor_ranks(model_with(12, 4), 4));
  EXPECT_NO_THROW(check_tensor_ranks(model_with(12, 4), 12));
  EXPECT_NO_THROW(check_tensor_ranks(model_with(12, 1), 3));
  test::expect_error(ErrorKind::kUser, "12 attention heads of model.layers.1", [] { check_tensor_ranks(model_with(12, 4), 5); });
  test::expect_error(ErrorKind::kUser, "parallel.tensor = 8", [] { check_tensor_ranks(model_with(12, 4), 8); });
}

TEST(CheckTensorRanks, KeyValueHeadsMustDivideOrBeDivided) {
  test::expect_error(ErrorKind::kUser, "4 kv heads of model.layers.1", [] { check_tensor_ranks(model_with(12, 4), 3); });
  test::expect_error(ErrorKind::kUser, "4 kv heads", [] { check_tensor_ranks(model_with(12, 4), 6); });
}

}  // namespace
}  // namespace ptq::layers
