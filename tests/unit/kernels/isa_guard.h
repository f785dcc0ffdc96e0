#pragma once
// For tests that run an op on every instruction set of this machine.

#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/ops.h"

namespace ptq::test {

inline std::vector<kernels::cpu::Isa> available_isas() {
  std::vector<kernels::cpu::Isa> isas;
  for (int i = 0; i <= static_cast<int>(kernels::cpu::best_isa()); ++i) isas.push_back(static_cast<kernels::cpu::Isa>(i));
  return isas;
}

/// Uses `isa` until the end of the scope.
class IsaGuard {
 public:
  explicit IsaGuard(kernels::cpu::Isa isa) { kernels::cpu::set_isa(isa); }
  ~IsaGuard() { kernels::cpu::set_isa(kernels::cpu::best_isa()); }
  IsaGuard(const IsaGuard&) = delete;
  IsaGuard& operator=(const IsaGuard&) = delete;
};

/// Uses `threads` until the end of the scope, then one.
class ThreadsGuard {
 public:
  explicit ThreadsGuard(int threads) { set_num_threads(threads); }
  ~ThreadsGuard() { set_num_threads(1); }
  ThreadsGuard(const ThreadsGuard&) = delete;
  ThreadsGuard& operator=(const ThreadsGuard&) = delete;
};

}  // namespace ptq::test
