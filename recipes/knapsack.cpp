#include "recipes/knapsack.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/core/error.h"

namespace ptq::recipes {

namespace {

__extension__ typedef __int128 Wide;

constexpr int kScoreBits = 52;
constexpr int64_t kLargestCost = int64_t{1} << 60;
constexpr int64_t kLargestExcess = int64_t{1} << 61;
/// Partial mixes kept in all: 8 bytes each, and a second's work.
constexpr size_t kMaxStates = size_t{1} << 23;

/// a / b, rounded down; b > 0.
Wide floor_div(Wide a, Wide b) { return a / b - (a % b < 0 ? 1 : 0); }

/// Scores as integers: exact sums that depend on no order.
struct Integers {
  explicit Integers(const std::vector<KnapsackGroup>& groups) {
    double largest = 0;
    Wide total = 0;
    for (const KnapsackGroup& group : groups) {
      require(!group.costs.empty() && group.costs.size() == group.scores.size(), "a knapsack group without options");
      for (const int64_t cost : group.costs) require(cost >= 0 && cost <= kLargestCost, "a negative or immense cost");
      for (const double score : group.scores) require(std::isfinite(score) && score >= 0, "a negative or infinite score");
      largest = std::max(largest, *std::max_element(group.scores.begin(), group.scores.end()));
      total += *std::max_element(group.costs.begin(), group.costs.end());
    }
    require(total <= kLargestCost, "immense costs");
    int exponent = 0, count_exponent = 0;
    std::frexp(largest, &exponent);
    std::frexp(static_cast<double>(groups.size()), &count_exponent);
    unit = exponent + count_exponent - kScoreBits;
    for (const KnapsackGroup& group : groups) {
      scores.emplace_back();
      for (const double score : group.scores) scores.back().push_back(static_cast<int64_t>(std::rint(std::ldexp(score, -unit))));
    }
  }
  double real(int64_t score) const { return std::ldexp(static_cast<double>(score), unit); }

  std::vector<std::vector<int64_t>> scores;
  int unit = 0;  ///< one is worth 2^unit
};

/// From one option of a group to the next dearer one on its lower convex hull.
struct Step {
  size_t group = 0;
  int from = 0, to = 0;
  int64_t cost = 0, gain = 0;  ///< both positive

  /// More gain per cost?
  bool is_steeper(const Step& other) const { return static_cast<Wide>(gain) * other.cost > static_cast<Wide>(other.gain) * cost; }
};

/// Options on the group's lower convex hull, by ascending cost: the first is the cheapest, the last has the least score.
std::vector<int> hull_of(const std::vector<int64_t>& costs, const std::vector<int64_t>& scores) {
  std::vector<int> order(costs.size());
  for (size_t o = 0; o < order.size(); ++o) order[o] = static_cast<int>(o);
  const auto cost = [&](int o) { return costs[static_cast<size_t>(o)]; };
  const auto score = [&](int o) { return scores[static_cast<size_t>(o)]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost(a) != cost(b) ? cost(a) < cost(b) : score(a) < score(b); });
  std::vector<int> hull;
  for (const int o : order) {
    if (!hull.empty() && score(o) >= score(hull.back())) continue;
    while (hull.size() > 1) {
      const int b = hull.back(), a = hull[hull.size() - 2];
      if (static_cast<Wide>(score(a) - score(b)) * (cost(o) - cost(b)) > static_cast<Wide>(score(b) - score(o)) * (cost(b) - cost(a)))
        break;
      hull.pop_back();
    }
    hull.push_back(o);
  }
  return hull;
}

/// The steps of all groups, those of most gain per cost first; of one group in order.
std::vector<Step> steps_of(const std::vector<KnapsackGroup>& groups, const Integers& integers) {
  std::vector<Step> steps;
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto& costs = groups[g].costs;
    const auto& scores = integers.scores[g];
    const std::vector<int> hull = hull_of(costs, scores);
    for (size_t h = 1; h < hull.size(); ++h) {
      const auto from = static_cast<size_t>(hull[h - 1]), to = static_cast<size_t>(hull[h]);
      steps.push_back({g, hull[h - 1], hull[h], costs[to] - costs[from], scores[from] - scores[to]});
    }
  }
  std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.is_steeper(b); });
  return steps;
}

/// The cheapest option of every group, of the least score among equals.
std::vector<int> cheapest_mix(const std::vector<KnapsackGroup>& groups, const Integers& integers) {
  std::vector<int> choice;
  for (size_t g = 0; g < groups.size(); ++g) choice.push_back(hull_of(groups[g].costs, integers.scores[g]).front());
  return choice;
}

/// Finds all best mixes whose score is near the bound of the relaxed problem. The relaxation prices cost: an option is worth score + price
/// x cost, and what it is worth more than the best of its group is its penalty. The penalties of a mix and the price of what is left of the
/// budget add up to how far it is above the bound, its excess. So for a given largest excess few groups have more than one option to
/// consider; these are laid upon each other from the last to the first in lists of partial mixes, without those that others dominate.
class Search {
 public:
  Search(const std::vector<KnapsackGroup>& groups, int64_t budget, int count)
      : groups_(groups), integers_(groups), budget_(budget), count_(static_cast<size_t>(count)) {
    find_price();
    find_penalties();
  }

  /// The best mixes, `count` where there are so many.
  std::vector<Mix> run() {
    int64_t allowed = greedy_excess_ / 64;
    std::vector<Mix> thinned;  // what was found where not all could be kept
    while (true) {
      is_complete_ = is_proven_ = true;
      least_cut_ = std::numeric_limits<int64_t>::max();
      std::vector<Mix> mixes = mixes_within(allowed);
      if (is_proven_ && (mixes.size() >= count_ || is_complete_)) return mixes;
      if (!thinned.empty()) return thinned;
      if (is_proven_ || mixes.empty()) {
        if (allowed == kLargestExcess) return {greedy_mix()};
        allowed = std::min(std::max(allowed + allowed / 2, least_cut_), kLargestExcess);
      } else {
        // None of the best is above these: with no more allowed, perhaps all can be kept.
        if (mixes.size() < count_ || found_excess_ >= allowed) return mixes;
        allowed = found_excess_;
        thinned = std::move(mixes);
      }
    }
  }

 private:
  struct State {
    int64_t cost = 0, score = 0, penalty = 0;
  };
  /// Where a state came from: one of the list before and the option added to it.
  struct Origin {
    uint32_t parent = 0;
    int32_t option = 0;
  };
  using List = std::vector<State>;

  /// What the groups that are still to come can cost.
  struct Reach {
    int64_t least = 0, most = 0, greedy = 0;
  };

  void find_price() {
    greedy_ = cheapest_mix(groups_, integers_);
    int64_t left = budget_;
    for (size_t g = 0; g < groups_.size(); ++g) left -= groups_[g].costs[static_cast<size_t>(greedy_[g])];
    require(left >= 0, "the budget does not hold the cheapest options");
    bool is_full = false;
    std::vector<bool> is_stopped(groups_.size(), false);
    for (const Step& step : steps_of(groups_, integers_)) {
      if (!is_full && step.cost > left) {
        is_full = true;
        price_gain_ = step.gain;
        price_cost_ = step.cost;
      }
      if (step.cost > left || is_stopped[step.group]) {
        is_stopped[step.group] = true;
        continue;
      }
      left -= step.cost;
      greedy_[step.group] = step.to;
    }
  }

  Mix greedy_mix() const {
    Mix mix{greedy_, 0, integers_.real(bound_ + greedy_excess_), false};
    for (size_t g = 0; g < groups_.size(); ++g) mix.cost += groups_[g].costs[static_cast<size_t>(greedy_[g])];
    return mix;
  }

  Wide worth(size_t group, size_t option) const {
    return static_cast<Wide>(price_cost_) * integers_.scores[group][option] + static_cast<Wide>(price_gain_) * groups_[group].costs[option];
  }

  void find_penalties() {
    Wide bound = -static_cast<Wide>(price_gain_) * budget_;
    int64_t greedy_score = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const size_t options = groups_[g].costs.size();
      Wide least = worth(g, 0);
      for (size_t o = 1; o < options; ++o) least = std::min(least, worth(g, o));
      penalties_.emplace_back();
      for (size_t o = 0; o < options; ++o)
        penalties_.back().push_back(static_cast<int64_t>(std::min<Wide>(floor_div(worth(g, o) - least, price_cost_), kLargestExcess)));
      bound += least;
      greedy_score += integers_.scores[g][static_cast<size_t>(greedy_[g])];
    }
    bound_ = static_cast<int64_t>(floor_div(bound, price_cost_));
    greedy_excess_ = greedy_score - bound_;
  }

  void cut(int64_t excess) {
    is_complete_ = false;
    least_cut_ = std::min(least_cut_, excess);
  }

  /// Options whose penalty is allowed, ascending. Never none: the best has no penalty.
  std::vector<int> options_within(size_t group, int64_t allowed) {
    std::vector<int> options;
    for (size_t o = 0; o < penalties_[group].size(); ++o) {
      if (penalties_[group][o] <= allowed)
        options.push_back(static_cast<int>(o));
      else
        cut(penalties_[group][o]);
    }
    return options;
  }

  /// Adds every option to every state. Keeps, by ascending cost, states that can still fit the budget and the allowed excess, and that
  /// fewer than `count` others precede in cost and score.
  List add_group(const List& before, size_t group, const std::vector<int>& options, const Reach& reach, int64_t allowed,
                 std::vector<Origin>& origins) {
    struct Source {
      int option;
      State added;
      size_t next, end;
    };
    // What no later group can spend is lost at the price of cost.
    const Wide largest_loss = price_gain_ == 0 || allowed == kLargestExcess
                                  ? static_cast<Wide>(kLargestCost) * 4
                                  : floor_div((static_cast<Wide>(allowed) + 1) * price_cost_, price_gain_);
    std::vector<Source> sources;
    for (const int option : options) {
      const auto o = static_cast<size_t>(option);
      const State added{groups_[group].costs[o], integers_.scores[group][o], penalties_[group][o]};
      const Wide most = static_cast<Wide>(budget_) - reach.least - added.cost;
      const Wide least = static_cast<Wide>(budget_) - reach.most - added.cost - largest_loss;
      const auto begin = std::partition_point(before.begin(), before.end(), [&](const State& s) { return s.cost < least; });
      const auto end = std::partition_point(begin, before.end(), [&](const State& s) { return s.cost <= most; });
      if (begin != before.begin()) cut(allowed + 1);
      sources.push_back({option, added, static_cast<size_t>(begin - before.begin()), static_cast<size_t>(end - before.begin())});
    }
    List after;
    std::vector<int64_t> lowest(count_, std::numeric_limits<int64_t>::max());  // scores so far, ascending
    while (true) {
      const Source* first = nullptr;
      State state;
      for (const Source& source : sources) {
        if (source.next == source.end) continue;
        const State& old = before[source.next];
        const State sum{old.cost + source.added.cost, old.score + source.added.score,
                        std::min(old.penalty + source.added.penalty, kLargestExcess)};
        if (first && (sum.cost > state.cost || (sum.cost == state.cost && sum.score >= state.score))) continue;
        first = &source;
        state = sum;
      }
      if (!first) break;
      const size_t parent = sources[static_cast<size_t>(first - sources.data())].next++;
      if (lowest.back() <= state.score) continue;
      if (state.penalty > allowed) {
        cut(state.penalty);
        continue;
      }
      lowest.back() = state.score;
      for (size_t i = count_ - 1; i > 0 && lowest[i - 1] > lowest[i]; --i) std::swap(lowest[i - 1], lowest[i]);
      after.push_back(state);
      origins.push_back({static_cast<uint32_t>(parent), static_cast<int32_t>(first->option)});
    }
    return after;
  }

  /// Leaves the `most` states nearest to the bound if the groups to come stay as greedy has them.
  void thin(List& states, std::vector<Origin>& origins, const Reach& reach, size_t most) {
    if (states.size() <= most) return;
    is_proven_ = false;
    const double price = static_cast<double>(price_gain_) / static_cast<double>(price_cost_);
    std::vector<double> distances;
    for (const State& state : states)
      distances.push_back(static_cast<double>(state.penalty) + price * std::fabs(static_cast<double>(budget_ - reach.greedy - state.cost)));
    std::vector<double> sorted = distances;
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(most), sorted.end());
    size_t kept = 0;
    for (size_t i = 0; i < states.size(); ++i) {
      if (distances[i] >= sorted[most]) continue;
      states[kept] = states[i];
      origins[kept++] = origins[i];
    }
    states.resize(kept);
    origins.resize(kept);
  }

  /// All that are among the best `count` and whose excess is allowed, in order.
  std::vector<Mix> mixes_within(int64_t allowed) {
    std::vector<std::vector<int>> options;
    std::vector<size_t> open;  // groups with a choice
    State fixed;
    std::vector<int> choice(groups_.size(), 0);
    for (size_t g = 0; g < groups_.size(); ++g) {
      options.push_back(options_within(g, allowed));
      choice[g] = options[g].front();
      if (options[g].size() > 1) {
        open.push_back(g);
        continue;
      }
      const auto o = static_cast<size_t>(choice[g]);
      fixed.cost += groups_[g].costs[o];
      fixed.score += integers_.scores[g][o];
    }
    std::vector<Reach> reach(1);  // by the number of open groups still to come
    for (const size_t g : open) {
      Reach next = reach.back();
      int64_t least = kLargestCost, most = 0;
      for (const int o : options[g]) {
        least = std::min(least, groups_[g].costs[static_cast<size_t>(o)]);
        most = std::max(most, groups_[g].costs[static_cast<size_t>(o)]);
      }
      next.least += least;
      next.most += most;
      next.greedy += groups_[g].costs[static_cast<size_t>(greedy_[g])];
      reach.push_back(next);
    }
    List states{fixed};
    std::vector<std::vector<Origin>> origins(open.size());
    for (size_t i = open.size(); i-- > 0;) {
      states = add_group(states, open[i], options[open[i]], reach[i], allowed, origins[i]);
      thin(states, origins[i], reach[i], kMaxStates / open.size());
    }
    std::vector<uint32_t> order;
    for (size_t i = 0; i < states.size(); ++i) {
      if (states[i].cost > budget_) continue;  // without open groups nothing has looked
      if (states[i].score - bound_ > allowed)
        cut(states[i].score - bound_);
      else
        order.push_back(static_cast<uint32_t>(i));
    }
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return states[a].score != states[b].score ? states[a].score < states[b].score : states[a].cost < states[b].cost;
    });
    if (order.size() > count_) order.resize(count_);
    if (!order.empty()) found_excess_ = states[order.back()].score - bound_;
    std::vector<Mix> mixes;
    for (const uint32_t last : order) {
      Mix mix{choice, states[last].cost, integers_.real(states[last].score), is_proven_};
      uint32_t at = last;
      for (size_t i = 0; i < open.size(); ++i) {
        mix.choice[open[i]] = origins[i][at].option;
        at = origins[i][at].parent;
      }
      mixes.push_back(std::move(mix));
    }
    return mixes;
  }

  const std::vector<KnapsackGroup>& groups_;
  Integers integers_;
  int64_t budget_;
  size_t count_;
  std::vector<int> greedy_;                      ///< a mix within the budget, and what completes thinned lists
  int64_t price_gain_ = 0, price_cost_ = 1;      ///< the price of cost, gain / cost; 0 where the best options all fit
  std::vector<std::vector<int64_t>> penalties_;  ///< rounded down
  int64_t bound_ = 0;                            ///< no mix scores less
  int64_t greedy_excess_ = 0;
  bool is_complete_ = true, is_proven_ = true;  ///< nothing was left out for its excess; nothing for its number
  int64_t found_excess_ = 0;                    ///< of the last mix found
  int64_t least_cut_ = 0;                       ///< the least excess that something left out may have
};

}  // namespace

CostRange cost_range(const std::vector<KnapsackGroup>& groups) {
  CostRange range;
  for (const KnapsackGroup& group : groups) {
    require(!group.costs.empty(), "a knapsack group without options");
    const auto [least, most] = std::minmax_element(group.costs.begin(), group.costs.end());
    range.least += *least;
    range.most += *most;
  }
  return range;
}

std::vector<Mix> best_mixes(const std::vector<KnapsackGroup>& groups, int64_t budget, int count) {
  require(count > 0, "no mixes asked for");
  if (const int64_t least = cost_range(groups).least; least > budget)
    throw user_error("a budget of " + std::to_string(budget) + " is less than the " + std::to_string(least) + " of the cheapest options");
  return Search(groups, budget, count).run();
}

Mix solve(const std::vector<KnapsackGroup>& groups, int64_t budget) { return best_mixes(groups, budget, 1).front(); }

std::vector<ParetoPoint> pareto(const std::vector<KnapsackGroup>& groups) {
  const Integers integers(groups);
  int64_t cost = 0, score = 0;
  const std::vector<int> cheapest = cheapest_mix(groups, integers);
  for (size_t g = 0; g < groups.size(); ++g) {
    cost += groups[g].costs[static_cast<size_t>(cheapest[g])];
    score += integers.scores[g][static_cast<size_t>(cheapest[g])];
  }
  std::vector<ParetoPoint> points{{cost, integers.real(score)}};
  for (const Step& step : steps_of(groups, integers)) points.push_back({cost += step.cost, integers.real(score -= step.gain)});
  return points;
}

}  // namespace ptq::recipes
