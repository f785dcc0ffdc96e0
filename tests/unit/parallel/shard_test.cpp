#include "parallel/shard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

namespace ptq::parallel {
namespace {

TEST(EvenShare, PartsFollowEachOtherAndCoverEverything) {
  for (const int64_t extent : {0, 1, 2, 7, 16, 97, 1000})
    for (const int64_t multiple : {1, 2, 16, 33})
      for (int64_t parts = 1; parts <= 9; ++parts) {
        int64_t at = 0;
        for (int64_t i = 0; i < parts; ++i) {
          const Range part = even_share(extent, parts, i, multiple);
          EXPECT_EQ(part.begin, at) << extent << " / " << parts << " at multiples of " << multiple << ", part " << i;
          EXPECT_GE(part.size(), 0);
          at = part.end;
        }
        EXPECT_EQ(at, extent) << extent << " / " << parts << " at multiples of " << multiple;
      }
}

TEST(EvenShare, PartsDifferByOneAtMostAndTheLargerComeFirst) {
  for (const int64_t extent : {5, 16, 97, 1000})
    for (int64_t parts = 1; parts <= 9; ++parts)
      for (int64_t i = 0; i < parts; ++i) EXPECT_EQ(even_share(extent, parts, i).size(), extent / parts + (i < extent % parts ? 1 : 0));
}

TEST(EvenShare, CutsOnlyAtMultiples) {
  // 100 elements are 7 units of 16, the last of them 4 long: 3 + 2 + 2 units.
  EXPECT_EQ(even_share(100, 3, 0, 16), (Range{0, 48}));
  EXPECT_EQ(even_share(100, 3, 1, 16), (Range{48, 80}));
  EXPECT_EQ(even_share(100, 3, 2, 16), (Range{80, 100}));
}

TEST(EvenShare, MorePartsThanUnitsLeaveTheLastEmpty) {
  EXPECT_EQ(even_share(20, 4, 0, 16), (Range{0, 16}));
  EXPECT_EQ(even_share(20, 4, 1, 16), (Range{16, 20}));
  EXPECT_EQ(even_share(20, 4, 2, 16), (Range{20, 20}));
  EXPECT_EQ(even_share(20, 4, 3, 16), (Range{20, 20}));
}

/// The least heaviest run of all ways to cut items [first, end) into `parts` runs that are not empty.
int64_t best_by_trying(const std::vector<int64_t>& weights, size_t first, int64_t parts) {
  if (parts == 1) return std::accumulate(weights.begin() + static_cast<int64_t>(first), weights.end(), int64_t{0});
  int64_t best = std::numeric_limits<int64_t>::max(), run = 0;
  for (size_t end = first + 1; end + static_cast<size_t>(parts) - 1 <= weights.size(); ++end) {
    run += weights[end - 1];
    best = std::min(best, std::max(run, best_by_trying(weights, end, parts - 1)));
  }
  return best;
}

TEST(BalancedRuns, TheHeaviestRunIsAsLightAsPossible) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<int64_t> weights(1 + random() % 9);
    for (int64_t& weight : weights) weight = static_cast<int64_t>(random() % 20);
    const auto parts = static_cast<int64_t>(1 + random() % weights.size());

    const std::vector<int64_t> cuts = balanced_runs(weights, parts);

    ASSERT_EQ(cuts.size(), static_cast<size_t>(parts) + 1);
    EXPECT_EQ(cuts.front(), 0);
    EXPECT_EQ(cuts.back(), static_cast<int64_t>(weights.size()));
    int64_t heaviest = 0;
    for (size_t p = 0; p + 1 < cuts.size(); ++p) {
      EXPECT_LT(cuts[p], cuts[p + 1]) << "an empty run although there are enough items";
      heaviest = std::max(heaviest, std::accumulate(weights.begin() + cuts[p], weights.begin() + cuts[p + 1], int64_t{0}));
    }
    EXPECT_EQ(heaviest, best_by_trying(weights, 0, parts));
  }
}

TEST(BalancedRuns, FewerItemsThanPartsLeaveRunsEmpty) {
  const std::vector<int64_t> cuts = balanced_runs({5, 7}, 4);

  ASSERT_EQ(cuts.size(), 5u);
  EXPECT_EQ(cuts.front(), 0);
  EXPECT_EQ(cuts.back(), 2);
  EXPECT_TRUE(std::is_sorted(cuts.begin(), cuts.end()));
  for (size_t p = 0; p + 1 < cuts.size(); ++p) EXPECT_LE(cuts[p + 1] - cuts[p], 1) << "two items in one run while another is empty";
}

TEST(BalancedRuns, NothingIsCutIntoEmptyRuns) { EXPECT_EQ(balanced_runs({}, 3), (std::vector<int64_t>{0, 0, 0, 0})); }

}  // namespace
}  // namespace ptq::parallel
