#include "parallel/shard.h"

#include <algorithm>
#include <limits>

namespace ptq::parallel {

std::vector<int64_t> balanced_runs(const std::vector<int64_t>& weights, int64_t parts) {
  const auto items = static_cast<int64_t>(weights.size());
  const int64_t runs = std::min(parts, items);
  std::vector<int64_t> prefix(weights.size() + 1, 0);
  for (size_t i = 0; i < weights.size(); ++i) prefix[i + 1] = prefix[i] + weights[i];
  // heaviest[r][i]: the least possible heaviest run when the first i items form r runs, none of them empty.
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  std::vector<std::vector<int64_t>> heaviest(static_cast<size_t>(runs + 1), std::vector<int64_t>(weights.size() + 1, kNever)),
      cut = heaviest;
  heaviest[0][0] = 0;
  for (int64_t r = 1; r <= runs; ++r)
    for (int64_t i = r; i <= items; ++i)
      for (int64_t j = r - 1; j < i; ++j) {
        const int64_t before = heaviest[static_cast<size_t>(r - 1)][static_cast<size_t>(j)];
        if (before == kNever) continue;
        const int64_t here = std::max(before, prefix[static_cast<size_t>(i)] - prefix[static_cast<size_t>(j)]);
        auto& best = heaviest[static_cast<size_t>(r)][static_cast<size_t>(i)];
        if (here < best) {
          best = here;
          cut[static_cast<size_t>(r)][static_cast<size_t>(i)] = j;
        }
      }
  std::vector<int64_t> boundaries(static_cast<size_t>(parts + 1), items);
  int64_t end = items;
  for (int64_t r = runs; r >= 1; --r) {
    boundaries[static_cast<size_t>(r)] = end;
    end = cut[static_cast<size_t>(r)][static_cast<size_t>(end)];
  }
  boundaries[0] = 0;
  return boundaries;
}

}  // namespace ptq::parallel
