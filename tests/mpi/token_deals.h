#pragma once
// Ways to deal tokens to the ranks of the world.

#include <functional>
#include <string>
#include <vector>

#include "tests/mpi/world.h"
#include "tests/unit/layers/tiny_experts.h"

namespace ptq::test {

/// Which rank has which of the tokens, ascending on each.
struct Deal {
  std::string name;
  std::function<int(int64_t)> rank_of;
  std::vector<int64_t> mine(int64_t tokens) const {
    std::vector<int64_t> found;
    for (int64_t t = 0; t < tokens; ++t)
      if (rank_of(t) == world().rank()) found.push_back(t);
    return found;
  }
};

inline std::vector<Deal> deals() {
  const int size = world().size();
  return {{"one after the other", [=](int64_t t) { return static_cast<int>(t % size); }},
          {"runs of uneven length", [=](int64_t t) { return t < 3    ? 0
                                                            : t < 20 ? 1
                                                                     : size - 1; }},
          {"all on the first", [](int64_t) { return 0; }},
          {"all on the last", [=](int64_t) { return size - 1; }},
          {"none on the first", [=](int64_t t) { return 1 + static_cast<int>(t * 7 % (size - 1)); }}};
}

/// Tokens of all ranks together, routed.
inline layers::TokenGroup routed_tokens(const TinyExperts& model, int64_t tokens, DType operand) {
  layers::TokenGroup group = random_tokens(tokens, model.sizes().hidden, operand);
  layers::Workspace workspace;
  layers::route_tokens(model.moe(), model.vectors, workspace, group);
  return group;
}

}  // namespace ptq::test
