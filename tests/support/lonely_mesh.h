#pragma once
// Every rank's view of a mesh whose other ranks are not there: sizes and ranks of all groups are right, but nothing can be communicated.

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "parallel/mesh.h"

namespace ptq::test {

/// What all ranks of the world passed to its splits: [split][world rank] = {color, key}.
using Splits = std::vector<std::vector<std::pair<int, int>>>;

/// The world of a rank. Splits are looked up in `known`, or, where that is too short, written down for the others.
class LonelyCommunicator : public parallel::Communicator {
 public:
  LonelyCommunicator(int rank, int size, std::shared_ptr<Splits> splits) : rank_(rank), size_(size), splits_(std::move(splits)) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_gather(const void*, std::span<const int64_t>, void*) override { throw bug("alone"); }
  void all_reduce_max(std::span<float>) override { throw bug("alone"); }
  void all_reduce_max(std::span<int64_t>) override { throw bug("alone"); }
  void all_reduce_sum(std::span<int64_t>) override { throw bug("alone"); }
  void broadcast(void*, int64_t, int) override { throw bug("alone"); }
  void barrier() override { throw bug("alone"); }
  std::unique_ptr<parallel::Transfer> send(const void*, int64_t, int, int) override { throw bug("alone"); }
  std::unique_ptr<parallel::Transfer> receive(void*, int64_t, int, int) override { throw bug("alone"); }
  std::unique_ptr<parallel::Communicator> split(int color, int key) override {
    const size_t number = next_++;
    if (splits_->size() <= number) splits_->resize(number + 1, std::vector<std::pair<int, int>>(static_cast<size_t>(size_)));
    auto& members = (*splits_)[number];
    members[static_cast<size_t>(rank_)] = {color, key};
    const auto is_before = [&](const auto& member) { return member.first == color && member.second < key; };
    const auto before = std::count_if(members.begin(), members.end(), is_before);
    const auto all = std::count_if(members.begin(), members.end(), [&](const auto& member) { return member.first == color; });
    return std::make_unique<LonelyCommunicator>(static_cast<int>(before), static_cast<int>(all), nullptr);
  }

 private:
  int rank_, size_;
  std::shared_ptr<Splits> splits_;
  size_t next_ = 0;
};

struct Place {
  std::unique_ptr<LonelyCommunicator> world;
  parallel::Mesh mesh;
};

inline std::vector<Place> all_ranks(parallel::MeshShape shape) {
  const int size = shape.data * shape.pipeline * shape.tensor;
  const auto splits = std::make_shared<Splits>();
  std::vector<Place> places;
  // Once to hear what every rank says, once more when all have spoken.
  for (const bool heard : {false, true})
    for (int r = 0; r < size; ++r) {
      auto world = std::make_unique<LonelyCommunicator>(r, size, splits);
      parallel::Mesh mesh = parallel::Mesh::make(*world, shape);
      if (heard) places.push_back({std::move(world), std::move(mesh)});
    }
  return places;
}

}  // namespace ptq::test
