#include "runner/sweep_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

namespace ptq::runner {
namespace {

int64_t bytes_between(const std::vector<int64_t>& bytes, int64_t begin, int64_t end) {
  return std::accumulate(bytes.begin() + begin, bytes.begin() + end, int64_t{0});
}

/// Windows that follow each other, keep what memory allows, and are as long as that lets them be.
void expect_sound(const std::vector<int64_t>& bytes, int64_t stages, int64_t depth) {
  SCOPED_TRACE(std::to_string(bytes.size()) + " layers, " + std::to_string(stages) + " stages, depth " + std::to_string(depth));
  const auto layers = static_cast<int64_t>(bytes.size());
  const int64_t most = depth * *std::max_element(bytes.begin(), bytes.end());

  const std::vector<Window> windows = cut_windows(bytes, stages, depth);

  int64_t at = 0;
  for (const Window& window : windows) {
    ASSERT_EQ(window.boundaries.size(), static_cast<size_t>(stages) + 1);
    EXPECT_EQ(window.boundaries.front(), at);
    EXPECT_GT(window.boundaries.back(), at);
    at = window.boundaries.back();
    for (size_t p = 0; p + 1 < window.boundaries.size(); ++p) {
      const int64_t begin = window.boundaries[p], end = window.boundaries[p + 1];
      ASSERT_LE(begin, end);
      EXPECT_TRUE(begin < end || at == layers) << "stage " << p << " idles in a window that is not the last";
      EXPECT_LE(bytes_between(bytes, begin, end), most) << "stage " << p;
    }
  }
  EXPECT_EQ(at, layers);
}

std::vector<std::vector<int64_t>> boundaries(const std::vector<Window>& windows) {
  std::vector<std::vector<int64_t>> all;
  for (const Window& window : windows) all.push_back(window.boundaries);
  return all;
}

TEST(CutWindows, EqualLayersGoOneToAStage) {
  EXPECT_EQ(boundaries(cut_windows({5, 5, 5, 5, 5}, 2, 1)), (std::vector<std::vector<int64_t>>{{0, 1, 2}, {2, 3, 4}, {4, 5, 5}}));
  EXPECT_EQ(boundaries(cut_windows({5, 5, 5}, 1, 1)), (std::vector<std::vector<int64_t>>{{0, 1}, {1, 2}, {2, 3}}));
  EXPECT_EQ(boundaries(cut_windows({5, 5, 5, 5, 5}, 2, 2)), (std::vector<std::vector<int64_t>>{{0, 2, 4}, {4, 5, 5}}));
}

TEST(CutWindows, SmallLayersInFrontComeInRuns) {
  // DeepSeek: three dense layers, then mixtures of many times their bytes. With one layer a stage, two stages would wait for the third.
  const std::vector<int64_t> bytes{10, 10, 10, 300, 300, 300, 300, 300};

  const std::vector<Window> windows = cut_windows(bytes, 4, 1);

  EXPECT_EQ(boundaries(windows), (std::vector<std::vector<int64_t>>{{0, 3, 4, 5, 6}, {6, 7, 8, 8, 8}}));
  expect_sound(bytes, 4, 1);
}

TEST(CutWindows, LayersOfNoBytesCostNothing) {
  // Models found by search have layers without attention, without an MLP, or without either.
  const std::vector<int64_t> bytes{0, 40, 0, 0, 7, 40, 0, 0, 0, 13, 40, 0, 0};
  for (int64_t stages = 1; stages <= 6; ++stages) expect_sound(bytes, stages, 1);

  EXPECT_EQ(cut_windows(bytes, 1, 1).size(), 5u) << "three large ones, and two small ones that do not fit beside them";
  EXPECT_EQ(cut_windows(std::vector<int64_t>(9, 0), 2, 1).size(), 1u);
}

TEST(CutWindows, FewerLayersThanStagesAreOneWindow) {
  const std::vector<Window> windows = cut_windows({8, 9}, 5, 1);

  ASSERT_EQ(windows.size(), 1u);
  expect_sound({8, 9}, 5, 1);
}

TEST(CutWindows, NoLayersAreNoWindows) { EXPECT_TRUE(cut_windows({}, 3, 1).empty()); }

TEST(CutWindows, AnyListIsSpreadSoundly) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<int64_t> bytes(1 + random() % 40);
    for (int64_t& layer : bytes) layer = static_cast<int64_t>(random() % 4 ? random() % 30 : random() % 3 * 1000);
    expect_sound(bytes, static_cast<int64_t>(1 + random() % 6), static_cast<int64_t>(1 + random() % 4));
  }
}

TEST(CutWindows, NoWindowCouldTakeTheNextLayerToo) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 100; ++round) {
    std::vector<int64_t> bytes(10 + random() % 20);
    for (int64_t& layer : bytes) layer = static_cast<int64_t>(1 + random() % 50);
    const int64_t most = *std::max_element(bytes.begin(), bytes.end());

    const std::vector<Window> windows = cut_windows(bytes, 1, 1);

    for (size_t w = 0; w + 1 < windows.size(); ++w)
      EXPECT_GT(bytes_between(bytes, windows[w].boundaries.front(), windows[w].boundaries.back() + 1), most);
  }
}

}  // namespace
}  // namespace ptq::runner
