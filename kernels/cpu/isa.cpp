#include "kernels/cpu/isa.h"

#include "kernels/core/error.h"

namespace ptq::kernels::cpu {

namespace {
Isa& current() {
  static Isa isa = best_isa();
  return isa;
}
}  // namespace

#if defined(__x86_64__)
Isa best_isa() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  return avx512 ? Isa::kAvx512 : Isa::kAvx2;
}
bool has_bf16_pairs() {
  __builtin_cpu_init();
  return best_isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
}
bool is_intel() {
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
}
#else
Isa best_isa() { return Isa::kBaseline; }
bool has_bf16_pairs() { return false; }
bool is_intel() { return false; }
#endif

Isa isa() { return current(); }
void set_isa(Isa isa) {
  require(isa <= best_isa(), "this processor lacks the instruction set");
  current() = isa;
}

}  // namespace ptq::kernels::cpu
