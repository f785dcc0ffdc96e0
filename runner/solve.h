#pragma once
// AutoQuantize's decision for other budgets, from the scores that a run has kept. Reads one file, never weights.

#include <string>
#include <vector>

namespace ptq::runner {

struct SolveOptions {
  std::string scores;                  ///< scores.h5
  std::vector<double> effective_bits;  ///< budgets
  bool json = false;
  bool verbose = false;  ///< the table of groups for every budget, not only where there is one
};

/// Prints, for every budget, the bits that are reached, the total score and how many groups get which candidate. Throws a user Error for a
/// file that is not there or budgets out of reach, a data Error for a damaged file or another kind of file. One rank calls it.
void solve(const SolveOptions& options);

}  // namespace ptq::runner
