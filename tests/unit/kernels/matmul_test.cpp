#include <gtest/gtest.h>

#include <cstring>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::matmul_by_fma, test::random_tensor, test::same_bits, test::ThreadsGuard;

struct Case {
  int64_t tokens, outputs, depth;
};
// One of everything; ragged tiles; more than one block of depth; more than one tile of outputs.
const std::vector<Case> kCases = {{1, 1, 1},     {1, 5, 17},    {33, 130, 33},   {7, 33, 130},  {14, 32, 512},
                                  {15, 31, 513}, {3, 64, 1025}, {29, 300, 1100}, {2, 65, 2047}, {100, 48, 40}};

class KernelGuard {
 public:
  explicit KernelGuard(MatmulKernel kernel) { set_matmul_kernel(kernel); }
  ~KernelGuard() { set_matmul_kernel(best_matmul_kernel()); }
};

std::vector<MatmulKernel> f32_kernels() {
  std::vector<MatmulKernel> kernels = {MatmulKernel::kScalar};
  if (cpu::best_isa() >= cpu::Isa::kAvx2) kernels.push_back(MatmulKernel::kAvx2);
  if (cpu::best_isa() >= cpu::Isa::kAvx512) kernels.push_back(MatmulKernel::kAvx512);
  return kernels;
}

Tensor product(const Tensor& x, const Tensor& w, const Tensor& bias = {}) {
  Tensor y = Tensor::empty({x.dim(0), w.dim(0)}, DType::kF32);
  std::memset(y.raw(), 0xff, static_cast<size_t>(y.bytes()));  // NaN: nothing may be read before it is written
  matmul(x, w, bias, y);
  return y;
}

TEST(Matmul, EveryF32KernelIsOneChainOfFusedMultiplyAdds) {
  for (const Case& c : kCases)
    for (const DType x_dtype : {DType::kF32, DType::kBF16})
      for (const DType w_dtype : {DType::kF32, DType::kBF16}) {
        const Tensor x = random_tensor({c.tokens, c.depth}, x_dtype, 1), w = random_tensor({c.outputs, c.depth}, w_dtype, 2);
        const Tensor bias = random_tensor({c.outputs}, DType::kBF16, 3), expected = matmul_by_fma(x, w, bias);

        for (const MatmulKernel kernel : f32_kernels()) {
          const KernelGuard guard(kernel);
          EXPECT_TRUE(same_bits(product(x, w, bias), expected))
              << to_string(kernel) << " T=" << c.tokens << " O=" << c.outputs << " C=" << c.depth;
        }
      }
}

TEST(Matmul, WidensHalfPrecisionWeights) {
  const Tensor x = random_tensor({5, 37}, DType::kBF16, 4), w = random_tensor({35, 37}, DType::kF16, 5);

  const Tensor expected = matmul_by_fma(x, w, {});

  EXPECT_TRUE(same_bits(product(x, w), expected));
}

TEST(Matmul, DoesNotDependOnTheThreadCount) {
  const Tensor x = random_tensor({300, 700}, DType::kBF16, 6), w = random_tensor({530, 700}, DType::kBF16, 7);
  const Tensor alone = product(x, w);

  for (const int threads : {2, 3, 16}) {
    const ThreadsGuard guard(threads);
    EXPECT_TRUE(same_bits(product(x, w), alone)) << threads;
  }
}

class PairsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      set_matmul_kernel(MatmulKernel::kAvx512Bf16);
    } catch (const Error&) {
      GTEST_SKIP() << "this processor does not multiply pairs of bf16";
    }
  }
  void TearDown() override { set_matmul_kernel(best_matmul_kernel()); }
};

TEST_F(PairsTest, AgreesWithF64) {
  for (const Case& c : kCases) {
    const Tensor x = random_tensor({c.tokens, c.depth}, DType::kBF16, 8), w = random_tensor({c.outputs, c.depth}, DType::kBF16, 9);

    const Tensor y = product(x, w);

    // Products of bf16 are exact in f32, so only the additions round: 2⁻²⁴ each, of partial sums about as large as the largest output.
    EXPECT_LT(test::relative_error(y, test::matmul_in_f64(x, w)), 2e-6) << c.tokens << " " << c.outputs << " " << c.depth;
  }
}

TEST_F(PairsTest, AnElementDoesNotDependOnItsPlaceInTheTensor) {
  const Tensor x = random_tensor({61, 1031}, DType::kBF16, 10), w = random_tensor({290, 1031}, DType::kBF16, 11);
  const Tensor whole = product(x, w);

  for (const auto& [t0, t1] : {std::pair<int64_t, int64_t>{0, 1}, {5, 18}, {60, 61}, {13, 61}})
    for (const auto& [o0, o1] : {std::pair<int64_t, int64_t>{0, 1}, {7, 39}, {255, 258}, {33, 290}}) {
      const Tensor part = product(x.rows(t0, t1), w.rows(o0, o1));
      for (int64_t t = t0; t < t1; ++t)
        ASSERT_EQ(0, std::memcmp(part.data<float>() + (t - t0) * (o1 - o0), whole.data<float>() + t * 290 + o0,
                                 static_cast<size_t>(o1 - o0) * sizeof(float)))
            << t << " of tokens " << t0 << ".." << t1 << ", outputs " << o0 << ".." << o1;
    }
}

TEST_F(PairsTest, DiffersFromTheF32ChainAsItsPlaceInTheTableSays) {
  const Tensor x = random_tensor({4, 512}, DType::kBF16, 12), w = random_tensor({8, 512}, DType::kBF16, 13);

  EXPECT_FALSE(same_bits(product(x, w), matmul_by_fma(x, w, {}))) << "the bf16 kernel did not run";
}

TEST_F(PairsTest, LeavesOtherPairsOfTypesToTheF32Chain) {
  const Tensor x = random_tensor({4, 512}, DType::kF32, 14), w = random_tensor({8, 512}, DType::kBF16, 15);

  EXPECT_TRUE(same_bits(product(x, w), matmul_by_fma(x, w, {})));
}

TEST(MatmulKernelTable, TheEnvironmentLowersTheKernel) {
  setenv("PTQ_MATMUL_KERNEL", "scalar", 1);
  EXPECT_EQ(best_matmul_kernel(), MatmulKernel::kScalar);
  setenv("PTQ_MATMUL_KERNEL", "fastest", 1);
  EXPECT_THROW(best_matmul_kernel(), Error);
  unsetenv("PTQ_MATMUL_KERNEL");
}

}  // namespace
}  // namespace ptq::kernels
