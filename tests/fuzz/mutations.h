#pragma once
// Damaged copies of sound files: the same sequence from the same seed.

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace ptq::test {

class Mutations {
 public:
  Mutations(std::vector<std::string> corpus, uint64_t seed) : corpus_(std::move(corpus)), random_(seed) {}

  /// One of the corpus with one to six changes.
  std::string next();
  /// 0 .. limit - 1; 0 for limit 0.
  size_t below(size_t limit);

 private:
  void change(std::string& bytes);

  std::vector<std::string> corpus_;
  std::mt19937_64 random_;
};

}  // namespace ptq::test
