#include <array>
#include <mutex>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/cpu_backward_ops.h"
#include "kernels/cpu/row_kernels.h"

namespace ptq::kernels::cpu {

namespace {
constexpr int64_t kElementsPerTask = 32768;
}

void add_squared_products(const Tensor& dy, const Tensor& delta, std::span<int64_t> bins) {
  require(dy.shape() == delta.shape(), "add_squared_products: shapes differ");
  require(bins.size() == kSumBins, "add_squared_products: not the bins of a sum");
  const float *const a = dy.data<float>(), *const b = delta.data<float>();
  std::mutex merging;
  parallel_ranges(dy.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    std::array<int64_t, kSumBins> own{};
    row_kernels().bin_squared_products(a + begin, b + begin, end - begin, own.data());
    const std::lock_guard lock(merging);
    for (size_t e = 0; e < kSumBins; ++e) bins[e] += own[e];
  });
}

}  // namespace ptq::kernels::cpu
