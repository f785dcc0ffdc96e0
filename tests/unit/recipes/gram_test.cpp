#include "recipes/gram.h"

#include <gtest/gtest.h>

#include "tests/support/reference_ops.h"
#include "tests/support/reference_search.h"
#include "tests/support/replayed_ranks.h"

namespace ptq::recipes {
namespace {

Tensor rows_of(const Tensor& all, int64_t begin, int64_t count) { return all.rows(begin, begin + count); }

/// The matrix of some calibration rows, gathered on every rank.
std::vector<GramBlock> gathered(const Tensor& tokens, const std::vector<int64_t>& lengths, int ranks) {
  std::vector<GramBlock> first;
  test::run_as_ranks(ranks, [&](parallel::Communicator& rank) {
    Gram gram(tokens.dim(1), rank.size(), rank.rank());
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      gram.add(rows_of(tokens, begin, length));
      begin += length;
    }
    const std::vector<GramBlock> blocks = gram.gather(rank);
    if (rank.rank() == 0) first = blocks;
    for (size_t b = 0; b < blocks.size(); ++b) EXPECT_TRUE(test::same_bits(blocks[b].values, first[b].values)) << "rank " << rank.rank();
  });
  return first;
}

TEST(Gram, HasTheSameBitsOverAnyRanks) {
  for (const DType dtype : {DType::kBF16, DType::kF32})
    for (const int64_t channels : {1, 48, 300, 777}) {
      const Tensor tokens = test::random_tensor({61, channels}, dtype, 11);
      const std::vector<int64_t> lengths{5, 1, 0, 15, 40};
      const Tensor one = gathered(tokens, lengths, 1).at(0).values;

      EXPECT_LT(test::relative_error(one, test::gram_in_f64(tokens)), 1e-5) << channels;
      for (const int ranks : {2, 3})
        EXPECT_TRUE(test::same_bits(one, gathered(tokens, lengths, ranks).at(0).values)) << channels << " channels on " << ranks;
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t j = 0; j < i; ++j) ASSERT_EQ(one.data<float>()[i * channels + j], one.data<float>()[j * channels + i]);
    }
}

TEST(Gram, OfNoTokensIsZero) {
  for (const float value : test::values_of(gathered(test::random_tensor({3, 20}, DType::kF32, 1), {0, 0}, 2).at(0).values))
    EXPECT_EQ(value, 0.0f);
}

TEST(GramBlocks, CutWhatIsTooWideByItsWidthAlone) {
  const auto cuts = [](int64_t channels) {
    std::vector<int64_t> ends;
    for (const parallel::Range& block : gram_blocks(channels)) {
      EXPECT_EQ(block.begin, ends.empty() ? 0 : ends.back());
      ends.push_back(block.end);
    }
    return ends;
  };
  EXPECT_EQ(cuts(16384), std::vector<int64_t>{16384});
  EXPECT_EQ(cuts(16385), (std::vector<int64_t>{8192, 16384, 16385}));
  EXPECT_EQ(cuts(20000), (std::vector<int64_t>{8192, 16384, 20000}));
  EXPECT_EQ(Gram::bytes(20000, 1), (int64_t{2} * 8192 * 8192 + 3616 * 3616) * 4);
  EXPECT_EQ(Gram::bytes(20000, 3), (int64_t{2} * 2731 * 8192 + 1206 * 3616) * 4) << "of the rank that has the most";
  EXPECT_EQ(Gram::bytes(512, 4), 128 * 512 * 4);
}

TEST(CopyColumns, TakesTheSameOfEveryRow) {
  const Tensor x = test::tensor_of({1, 2, 3, 4, 5, 6}, {2, 3}, DType::kBF16);
  EXPECT_EQ(test::values_of(columns_of(x, {1, 3})), (std::vector<float>{2, 3, 5, 6}));
  EXPECT_EQ(columns_of(x, {0, 3}).raw(), x.raw());
}

}  // namespace
}  // namespace ptq::recipes
