#pragma once
// Several ranks in one process, one after the other: a rank runs until it meets a collective that not all have reached yet, is stopped
// there, and starts over once they have. For code that does the same whenever it is run.

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "parallel/communicator.h"

namespace ptq::test {

class ReplayedRank : public parallel::Communicator {
 public:
  using Bytes = std::vector<std::byte>;
  /// What every rank brought to the collectives so far, and to the next one.
  struct Script {
    std::vector<std::vector<Bytes>> calls;
    std::vector<Bytes> next;
  };
  struct Stop {};

  ReplayedRank(int rank, int size, Script& script) : rank_(rank), size_(size), script_(script) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_gather(const void* mine, std::span<const int64_t> bytes, void* all) override {
    auto* out = static_cast<std::byte*>(all);
    for (const Bytes& part : exchange(mine, bytes[static_cast<size_t>(rank_)])) out = std::copy(part.begin(), part.end(), out);
  }
  void all_reduce_max(std::span<float> values) override {
    reduce(values, [](float a, float b) { return std::max(a, b); });
  }
  void all_reduce_max(std::span<int64_t> values) override {
    reduce(values, [](int64_t a, int64_t b) { return std::max(a, b); });
  }
  void all_reduce_sum(std::span<int64_t> values) override { reduce(values, std::plus<int64_t>()); }
  void broadcast(void*, int64_t, int) override { throw bug("not replayed"); }
  void barrier() override {}
  std::unique_ptr<parallel::Transfer> send(const void*, int64_t, int, int) override { throw bug("not replayed"); }
  std::unique_ptr<parallel::Transfer> receive(void*, int64_t, int, int) override { throw bug("not replayed"); }
  std::unique_ptr<parallel::Communicator> split(int, int) override { throw bug("not replayed"); }

 private:
  const std::vector<Bytes>& exchange(const void* mine, int64_t bytes) {
    if (at_ < script_.calls.size()) return script_.calls[at_++];
    const auto* begin = static_cast<const std::byte*>(mine);
    script_.next[static_cast<size_t>(rank_)].assign(begin, begin + bytes);
    throw Stop();
  }
  template <class T, class Merge>
  void reduce(std::span<T> values, const Merge& merge) {
    const auto& all = exchange(values.data(), static_cast<int64_t>(values.size_bytes()));
    std::vector<T> part(values.size());
    for (size_t r = 0; r < all.size(); ++r) {
      std::memcpy(part.data(), all[r].data(), values.size_bytes());
      for (size_t i = 0; i < part.size(); ++i) values[i] = r == 0 ? part[i] : merge(values[i], part[i]);
    }
  }

  int rank_, size_;
  Script& script_;
  size_t at_ = 0;
};

/// Runs work(rank's communicator) as every rank of so many.
inline void run_as_ranks(int size, const std::function<void(parallel::Communicator&)>& work) {
  ReplayedRank::Script script;
  for (;;) {
    script.next.assign(static_cast<size_t>(size), {});
    int stopped = 0;
    for (int rank = 0; rank < size; ++rank) {
      ReplayedRank self(rank, size, script);
      try {
        work(self);
      } catch (const ReplayedRank::Stop&) {
        ++stopped;
      }
    }
    if (stopped == 0) return;
    if (stopped != size) throw bug("some ranks wait in a collective that others never reach");
    script.calls.push_back(script.next);
  }
}

}  // namespace ptq::test
