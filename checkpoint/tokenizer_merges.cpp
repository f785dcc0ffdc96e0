#include "checkpoint/tokenizer_merges.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
// No pair of ids: ids are not negative.
constexpr uint64_t kFree = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kNobody = std::numeric_limits<uint32_t>::max();
// Below this many symbols scanning the ranks again after each merge is quicker than a heap.
constexpr size_t kShort = 32;
}  // namespace

TokenizerMerges::TokenizerMerges(size_t count) : slots_(std::bit_ceil(std::max<size_t>(2 * count, 2)), Slot{kFree, {kNoRank, -1}}) {}

size_t TokenizerMerges::slot_of(uint64_t key) const {
  const size_t mask = slots_.size() - 1;
  uint64_t hash = key * 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio: spreads neighbouring ids
  hash ^= hash >> 32;
  size_t slot = hash & mask;
  while (slots_[slot].key != kFree && slots_[slot].key != key) slot = (slot + 1) & mask;
  return slot;
}

void TokenizerMerges::set(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  slots_[slot_of(key)] = {key, merge};
}

const TokenizerMerges::Merge* TokenizerMerges::find(int32_t left, int32_t right) const {
  const Slot& slot = slots_[slot_of(key_of(left, right))];
  return slot.key == kFree ? nullptr : &slot.merge;
}

void TokenizerMerges::apply(std::vector<int32_t>& symbols) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShort)
    apply_short(symbols);
  else
    apply_long(symbols);
}

void TokenizerMerges::apply_short(std::vector<int32_t>& symbols) const {
  size_t count = symbols.size();
  const Merge* merges[kShort];  // merges[i]: the rule of symbols i and i + 1
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = find(symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = count;
    uint32_t best_rank = kNoRank;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i] && merges[i]->rank < best_rank) {
        best = i;
        best_rank = merges[i]->rank;
      }
    }
    if (best == count) break;
    symbols[best] = merges[best]->id;
    // Close the gap: the symbol behind the pair's left one is gone, and with it the rule between the two.
    for (size_t i = best + 1; i + 1 < count; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best + 1; i + 2 < count; ++i) merges[i] = merges[i + 1];
    --count;
    if (best > 0) merges[best - 1] = find(symbols[best - 1], symbols[best]);
    if (best + 1 < count) merges[best] = find(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

void TokenizerMerges::apply_long(std::vector<int32_t>& symbols) const {
  struct Link {
    uint32_t previous, next;
  };
  // A candidate is rank << 32 | position, so that the smallest is the lowest rank, leftmost. One whose pair was merged away meanwhile stays
  // in the heap and is recognised by its rank: a rank belongs to one pair.
  static thread_local std::vector<uint64_t> heap;
  static thread_local std::vector<Link> links;
  if (symbols.size() >= kNobody) throw data_error("a piece of text is too long for the tokenizer");
  const auto count = static_cast<uint32_t>(symbols.size());
  heap.clear();
  links.resize(count);
  const auto candidate = [&](uint32_t left, uint32_t right) -> std::optional<uint64_t> {
    const Merge* merge = find(symbols[left], symbols[right]);
    if (!merge) return std::nullopt;
    return static_cast<uint64_t>(merge->rank) << 32 | left;
  };
  for (uint32_t i = 0; i < count; ++i) {
    links[i] = {i == 0 ? kNobody : i - 1, i + 1 == count ? kNobody : i + 1};
    if (i + 1 == count) continue;
    if (const auto entry = candidate(i, i + 1)) heap.push_back(*entry);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t entry = heap.back();
    heap.pop_back();
    const auto left = static_cast<uint32_t>(entry);
    if (symbols[left] < 0) continue;  // merged into the symbol before it
    const uint32_t right = links[left].next;
    if (right == kNobody) continue;
    const Merge* merge = find(symbols[left], symbols[right]);
    if (!merge || merge->rank != entry >> 32) continue;

    symbols[left] = merge->id;
    symbols[right] = -1;
    const uint32_t next = links[right].next;
    links[left].next = next;
    const auto push = [&](uint32_t first, uint32_t second) {
      const auto added = candidate(first, second);
      if (!added) return;
      heap.push_back(*added);
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    };
    if (next != kNobody) {
      links[next].previous = left;
      push(left, next);
    }
    if (links[left].previous != kNobody) push(links[left].previous, left);
  }
  std::erase_if(symbols, [](int32_t id) { return id < 0; });
}

}  // namespace ptq::checkpoint
