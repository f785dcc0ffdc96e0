// Prints the GFLOP/s that oneDNN reaches on a 4096³ f32 matrix product on this machine now: the rate that other benches divide by.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

int main() {
  constexpr int64_t kSize = 4096;
  std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f), c(kSize * kSize);
  double best = 1e30;
  for (int run = 0; run < 4; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    dnnl::sgemm('N', 'T', kSize, kSize, kSize, 1.0f, a.data(), kSize, b.data(), kSize, 0.0f, c.data(), kSize);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (run > 0) best = std::min(best, seconds);
  }
  fmt::print("{:.1f}\n", 2e-9 * kSize * kSize * kSize / best);
}
