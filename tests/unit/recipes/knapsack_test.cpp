#include "recipes/knapsack.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/support/expect_error.h"
#include "tests/support/shared_folder.h"

namespace ptq::recipes {
namespace {

using Groups = std::vector<KnapsackGroup>;

/// All mixes within the budget in the order of best_mixes. Scores of the groups must be small integers.
std::vector<Mix> all_mixes(const Groups& groups, int64_t budget) {
  std::vector<Mix> mixes;
  Mix mix;
  const std::function<void(size_t)> extend = [&](size_t g) {
    if (mix.cost > budget) return;
    if (g == groups.size()) return mixes.push_back(mix);
    for (size_t o = 0; o < groups[g].costs.size(); ++o) {
      mix.choice.push_back(static_cast<int>(o));
      mix.cost += groups[g].costs[o];
      mix.score += groups[g].scores[o];
      extend(g + 1);
      mix.choice.pop_back();
      mix.cost -= groups[g].costs[o];
      mix.score -= groups[g].scores[o];
    }
  };
  extend(0);
  std::stable_sort(mixes.begin(), mixes.end(),
                   [](const Mix& a, const Mix& b) { return a.score != b.score ? a.score < b.score : a.cost < b.cost; });
  return mixes;
}

/// Small ranges make ties of scores, of costs and of both, and zeros.
Groups random_groups(std::mt19937& random, int64_t largest) {
  const auto number = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
  Groups groups(static_cast<size_t>(number(1, 6)));
  if (number(0, 9) == 0) groups.resize(8);
  for (KnapsackGroup& group : groups) {
    const int64_t options = number(1, 4);
    for (int64_t o = 0; o < options; ++o) {
      group.costs.push_back(number(0, largest));
      group.scores.push_back(static_cast<double>(number(0, largest)));
    }
  }
  if (groups.size() > 2) groups.back() = groups.front();
  return groups;
}

void expect_same(const std::vector<Mix>& found, const std::vector<Mix>& expected, size_t count) {
  ASSERT_EQ(found.size(), std::min(count, expected.size()));
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].choice, expected[i].choice) << "mix " << i;
    EXPECT_EQ(found[i].cost, expected[i].cost);
    EXPECT_EQ(found[i].score, expected[i].score);
    EXPECT_TRUE(found[i].is_proven);
  }
}

TEST(Knapsack, AgreesWithTryingEverything) {
  std::mt19937 random(1);
  for (int instance = 0; instance < 300; ++instance) {
    SCOPED_TRACE(instance);
    const int64_t largest[] = {2, 6, 40, 1000};
    const Groups groups = random_groups(random, largest[instance % 4]);
    const CostRange range = cost_range(groups);
    const int64_t budget = std::uniform_int_distribution<int64_t>(range.least, range.most + 1)(random);

    const std::vector<Mix> expected = all_mixes(groups, budget);

    expect_same({solve(groups, budget)}, expected, 1);
    for (const int count : {2, 3, 7}) expect_same(best_mixes(groups, budget, count), expected, static_cast<size_t>(count));
  }
}

TEST(Knapsack, AgreesWithTryingEverythingInLargerInstances) {
  std::mt19937 random(2);
  for (int instance = 0; instance < 4; ++instance) {
    Groups groups;
    for (int g = 0; g < (instance < 2 ? 12 : 9); ++g) {
      groups.emplace_back();
      for (int o = 0; o < (instance < 2 ? 3 : 4); ++o) {
        groups.back().costs.push_back(std::uniform_int_distribution<int64_t>(0, 1'000'000)(random));
        groups.back().scores.push_back(std::uniform_int_distribution<int>(0, 1 << 20)(random));
      }
    }
    const CostRange range = cost_range(groups);
    const int64_t budget = range.least + (range.most - range.least) * (instance + 1) / 6;

    const std::vector<Mix> found = best_mixes(groups, budget, 5);

    expect_same(found, all_mixes(groups, budget), 5);
  }
}

TEST(Knapsack, GivesAllMixesWhereThereAreFewerThanAskedFor) {
  const Groups groups{{{1, 2}, {5, 3}}, {{1, 4}, {7, 0}}};

  const std::vector<Mix> found = best_mixes(groups, 100, 9);

  expect_same(found, all_mixes(groups, 100), 9);
  EXPECT_EQ(found.size(), 4u);
}

TEST(Knapsack, TiesGoToFewerBitsAndThenToTheEarlierOptionOfTheFirstGroup) {
  EXPECT_EQ(solve({{{5, 4}, {1, 1}}}, 9).choice, std::vector<int>{1}) << "fewer bits";
  EXPECT_EQ(solve({{{4, 4}, {1, 1}}}, 9).choice, std::vector<int>{0}) << "the earlier candidate";
  // One of the three can have the better option.
  EXPECT_EQ(solve({{{1, 2}, {1, 0}}, {{1, 2}, {1, 0}}, {{1, 2}, {1, 0}}}, 4).choice, (std::vector<int>{0, 0, 1}));
  EXPECT_EQ(solve({{{2, 1}, {0, 1}}, {{2, 1}, {0, 1}}, {{2, 1}, {0, 1}}}, 4).choice, (std::vector<int>{0, 1, 1}));
}

TEST(Knapsack, ScoresOfZeroTakeTheCheapestOptions) {
  EXPECT_EQ(solve({{{9, 4, 4}, {0, 0, 0}}, {{7, 8}, {0, 0}}}, 100).choice, (std::vector<int>{1, 0}));
}

TEST(Knapsack, SumsDoNotDependOnTheOrderOfGroups) {
  Groups groups;
  for (int g = 0; g < 40; ++g) groups.push_back({{1 + g % 7, 2 + 3 * g}, {std::ldexp(1.0 / (3 + g), g % 30), 0.1 / (1 + g)}});
  const Mix mix = solve(groups, 900);
  std::reverse(groups.begin(), groups.end());

  const Mix reversed = solve(groups, 900);

  EXPECT_EQ(mix.score, reversed.score);
  EXPECT_EQ(mix.cost, reversed.cost);
  EXPECT_TRUE(std::equal(mix.choice.begin(), mix.choice.end(), reversed.choice.rbegin()));
}

TEST(Knapsack, AgreesWithTheIntegerProgramOfTheVectors) {
  PTQ_NEEDS_SHARED(shared);
  std::ifstream file(shared + "/vectors/algorithms.json");
  const auto vectors = nlohmann::json::parse(file).at("autoquant_knapsack");
  Groups groups;
  for (size_t g = 0; g < vectors["numel"].size(); ++g) {
    groups.emplace_back();
    for (const double bits : vectors["bits"])
      groups.back().costs.push_back(static_cast<int64_t>(2 * bits) * vectors["numel"][g].get<int64_t>());
    groups.back().scores = vectors["scores"][g].get<std::vector<double>>();
  }
  ASSERT_EQ(vectors["solutions"].size(), 5u);
  for (const auto& solution : vectors["solutions"]) {
    const Mix mix = solve(groups, static_cast<int64_t>(32 * solution["budget"].get<double>()));

    EXPECT_EQ(mix.choice, solution["bruteforce"].get<std::vector<int>>());
    EXPECT_NEAR(mix.score, solution["best_score"].get<double>(), 1e-9);
  }
}

TEST(Knapsack, OneCandidateLeavesNoChoice) {
  const Mix mix = solve({{{3}, {2.5}}, {{4}, {0}}}, 7);

  EXPECT_EQ(mix.choice, (std::vector<int>{0, 0}));
  EXPECT_EQ(mix.cost, 7);
  EXPECT_EQ(mix.score, 2.5);
  EXPECT_TRUE(solve({}, 0).choice.empty());
}

TEST(Knapsack, ABudgetBelowTheCheapestOptionsIsRefused) {
  test::expect_error(ErrorKind::kUser, "a budget of 6 is less than the 7 of the cheapest options", [] {
    solve({{{3, 5}, {2, 1}}, {{4, 9}, {1, 0}}}, 6);
  });
}

/// What makes 1,000 groups of 5 options hard in different ways.
struct Kind {
  const char* name;
  std::function<KnapsackGroup(std::mt19937&, int)> make;
};

KnapsackGroup random_group(std::mt19937& random) {
  KnapsackGroup group;
  for (int o = 0; o < 5; ++o) {
    group.costs.push_back(std::uniform_int_distribution<int64_t>(500'000'000, 2'000'000'000)(random));
    group.scores.push_back(std::uniform_real_distribution<double>(0, 1)(random));
  }
  return group;
}

/// Bits of a number of weights in five formats, and errors that fall with them.
KnapsackGroup format_group(std::mt19937& random, int64_t weights) {
  const double loudness = std::exp(std::normal_distribution<double>(0, 2)(random));
  KnapsackGroup group;
  for (const double bits : {4.25, 4.5, 8.0, 8.25, 16.0}) {
    const double noise = std::exp(std::normal_distribution<double>(0, 0.3)(random));
    group.costs.push_back(static_cast<int64_t>(bits * 4) * weights / 4 + 64);
    group.scores.push_back(bits == 16 ? 0 : loudness * noise * std::exp2(-2 * bits));
  }
  return group;
}

const std::vector<Kind> kKinds{
    {"random", [](std::mt19937& random, int) { return random_group(random); }},
    {"formats of equal layers",
     [](std::mt19937& random, int g) {
       const int64_t shapes[] = {4096 * 6144, 4096 * 4096, 4096 * 28672, 4096 * 14336};
       return format_group(random, shapes[g % 4]);
     }},
    {"formats of layers all different",
     [](std::mt19937& random, int) { return format_group(random, std::uniform_int_distribution<int64_t>(1e8, 4e8)(random)); }},
    {"equal groups",
     [](std::mt19937&, int) {
       std::mt19937 same(7);
       return random_group(same);
     }},
    {"equal groups of formats",
     [](std::mt19937&, int) {
       std::mt19937 same(8);
       return format_group(same, 123'456'789);
     }},
    {"two kinds of groups",
     [](std::mt19937&, int g) {
       std::mt19937 same(static_cast<unsigned>(g % 2));
       return random_group(same);
     }},
    {"seven kinds of groups",
     [](std::mt19937&, int g) {
       std::mt19937 same(static_cast<unsigned>(g % 7));
       return random_group(same);
     }},
    {"scores nearly proportional to costs",
     [](std::mt19937& random, int) {
       KnapsackGroup group = random_group(random);
       for (size_t o = 0; o < 5; ++o)
         group.scores[o] = 3.0 - 1e-9 * static_cast<double>(group.costs[o]) + std::uniform_real_distribution<double>(0, 0.01)(random);
       return group;
     }},
    {"equal scores everywhere, costs apart",
     [](std::mt19937& random, int) {
       KnapsackGroup group = random_group(random);
       group.scores = {4, 3, 2, 1, 0};
       return group;
     }},
};

TEST(Knapsack, AThousandGroupsTakeLessThanASecond) {
  for (const Kind& kind : kKinds) {
    std::mt19937 random(3);
    Groups groups;
    for (int g = 0; g < 1000; ++g) groups.push_back(kind.make(random, g));
    const CostRange range = cost_range(groups);
    for (const int percent : {3, 30, 77}) {
      const int64_t budget = range.least + (range.most - range.least) / 100 * percent;
      for (const int count : {1, 3}) {
        const auto begin = std::chrono::steady_clock::now();
        const std::vector<Mix> mixes = best_mixes(groups, budget, count);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

        SCOPED_TRACE(std::string(kind.name) + ", " + std::to_string(percent) + " %, " + std::to_string(count) + " mixes");
        ASSERT_EQ(mixes.size(), static_cast<size_t>(count));
        EXPECT_LE(mixes[0].cost, budget);
        EXPECT_TRUE(mixes[0].is_proven);
        EXPECT_LT(seconds, count == 1 ? 1.0 : 3.0);
        for (size_t i = 1; i < mixes.size(); ++i) EXPECT_GE(mixes[i].score, mixes[i - 1].score);
      }
    }
  }
}

TEST(Knapsack, ScoresProportionalToCostsFillTheBudgetIfNotProvably) {
  std::mt19937 random(5);
  Groups groups;
  for (int g = 0; g < 300; ++g) {
    groups.push_back(random_group(random));
    for (size_t o = 0; o < 5; ++o) groups.back().scores[o] = 3.0 - 1e-9 * static_cast<double>(groups.back().costs[o]);
  }
  const CostRange range = cost_range(groups);
  const int64_t budget = (range.least + range.most) / 2;

  const Mix mix = solve(groups, budget);

  EXPECT_LE(mix.cost, budget);
  EXPECT_GT(mix.cost, budget - 1000) << "of 3e11";
}

TEST(Pareto, IsTheConvexHullOfAllMixes) {
  std::mt19937 random(4);
  for (int instance = 0; instance < 30; ++instance) {
    const Groups groups = random_groups(random, 40);

    const std::vector<ParetoPoint> points = pareto(groups);

    const CostRange range = cost_range(groups);
    EXPECT_EQ(points.front().cost, range.least);
    EXPECT_EQ(points.front().score, solve(groups, range.least).score);
    EXPECT_EQ(points.back().score, solve(groups, range.most).score);
    EXPECT_EQ(points.back().cost, solve(groups, range.most).cost);
    for (size_t i = 1; i < points.size(); ++i) {
      EXPECT_EQ(points[i].score, solve(groups, points[i].cost).score) << "a point of the hull is the best of its cost";
      if (i < 2) continue;
      const auto slope = [&](size_t j) {
        return (points[j - 1].score - points[j].score) / static_cast<double>(points[j].cost - points[j - 1].cost);
      };
      EXPECT_LE(slope(i), slope(i - 1) * (1 + 1e-12));
    }
  }
}

}  // namespace
}  // namespace ptq::recipes
