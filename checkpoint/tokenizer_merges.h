#pragma once
// The merge rules of a BPE vocabulary over token ids, and the merge loop. Immutable after build: threads share it.

#include <cstdint>
#include <optional>
#include <vector>

namespace ptq::checkpoint {

class TokenizerMerges {
 public:
  struct Merge {
    uint32_t rank;  ///< lowest first
    int32_t id;     ///< what the pair becomes
  };

  /// Room for that many rules.
  explicit TokenizerMerges(size_t count = 0);
  /// Adds left + right → merge. The last rule for a pair stands.
  void set(int32_t left, int32_t right, Merge merge);

  /// Replaces `symbols` by what is left when the pair of lowest rank (leftmost on a tie) was merged until none had a rule.
  /// O(n log n), so a piece may be a whole document.
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Slot {
    uint64_t key;
    Merge merge;
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  const Merge* find(int32_t left, int32_t right) const;
  size_t slot_of(uint64_t key) const;
  void apply_short(std::vector<int32_t>& symbols) const;
  void apply_long(std::vector<int32_t>& symbols) const;

  std::vector<Slot> slots_;  ///< open addressing, a power of two, at most half full
};

}  // namespace ptq::checkpoint
