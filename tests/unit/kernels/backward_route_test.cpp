#include <gtest/gtest.h>

#include "kernels/backward_ops.h"
#include "tests/support/numeric_gradient.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using Kind = RouteRule::Kind;
using test::random_tensor;

struct Routed {
  Tensor experts, weights;
};
Routed routed(const Tensor& logits, const Tensor& correction, const RouteRule& rule) {
  Routed result{Tensor::empty({logits.dim(0), rule.top_k}, DType::kI32), Tensor::empty({logits.dim(0), rule.top_k}, DType::kF32)};
  route(logits, correction, rule, result.experts, result.weights);
  return result;
}

/// Logits whose order no step of a difference changes: a random permutation of evenly spaced numbers for each token.
Tensor spaced_logits(int64_t tokens, int64_t experts) {
  const Tensor random = random_tensor({tokens, experts}, DType::kF32, 1);
  Tensor logits = Tensor::empty({tokens, experts}, DType::kF32);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* const row = random.data<float>() + t * experts;
    for (int64_t e = 0; e < experts; ++e) {
      const auto rank = std::count_if(row, row + experts, [&](float other) { return other < row[e]; });
      logits.data<float>()[t * experts + e] = 6.0f * static_cast<float>(rank) / static_cast<float>(experts) - 3.0f;
    }
  }
  return logits;
}

void expect_as_differences(const RouteRule& rule, const Tensor& correction = {}) {
  for (const int64_t tokens : {1, 7, 33}) {
    const Tensor logits = spaced_logits(tokens, 24), dweights = random_tensor({tokens, rule.top_k}, DType::kF32, 2);
    const Routed forward = routed(logits, correction, rule);
    Tensor dlogits = random_tensor(logits.shape(), DType::kF32, 3);

    route_backward(logits, rule, forward.experts, forward.weights, dweights, dlogits);

    EXPECT_LT(test::gradient_error(
                  dlogits, logits, dweights, [&] { return test::route_in_f64(logits, correction, rule).weights; }, 1000),
              1e-5)
        << "kind " << static_cast<int>(rule.kind) << ", normalize " << rule.normalize << ", " << tokens << " tokens";
  }
}

TEST(RouteBackward, AgreesWithDifferences) {
  for (const int64_t top_k : {2, 5, 12}) {
    expect_as_differences({.kind = Kind::kSoftmax, .top_k = top_k});
    expect_as_differences({.kind = Kind::kSoftmax, .top_k = top_k, .normalize = true});
    expect_as_differences({.kind = Kind::kTopKSoftmax, .top_k = top_k});
    expect_as_differences({.kind = Kind::kSigmoid, .top_k = top_k});
    for (const bool normalize : {false, true})
      expect_as_differences(
          {.kind = Kind::kGroupedSigmoid, .top_k = top_k, .normalize = normalize, .groups = 6, .top_groups = 3, .scaling = 2.5f});
  }
}

TEST(RouteBackward, ACorrectionDecidesWhoIsChosenAlone) {
  expect_as_differences({.kind = Kind::kGroupedSigmoid, .top_k = 3, .normalize = true, .groups = 4, .top_groups = 2, .scaling = 2.5f},
                        random_tensor({24}, DType::kF32, 4, 0.2f));
}

TEST(RouteBackward, OneChosenExpertOfAllHasAConstantWeight) {
  const Tensor logits = spaced_logits(7, 24), dweights = random_tensor({7, 1}, DType::kF32, 5);
  for (const RouteRule& rule :
       {RouteRule{.kind = Kind::kTopKSoftmax, .top_k = 1}, RouteRule{.kind = Kind::kSoftmax, .top_k = 1, .normalize = true}}) {
    const Routed forward = routed(logits, {}, rule);
    Tensor dlogits = Tensor::empty(logits.shape(), DType::kF32);

    route_backward(logits, rule, forward.experts, forward.weights, dweights, dlogits);

    EXPECT_EQ(amax(dlogits).value, 0.0f);
  }
}

TEST(RouteBackward, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const Tensor logits = random_tensor({37, 66}, DType::kF32, 6, 2.0f), dweights = random_tensor({37, 4}, DType::kF32, 7);
  for (const Kind kind : {Kind::kSoftmax, Kind::kTopKSoftmax, Kind::kSigmoid, Kind::kGroupedSigmoid}) {
    const RouteRule rule{.kind = kind, .top_k = 4};
    const Routed forward = routed(logits, {}, rule);
    Tensor expected = Tensor::empty(logits.shape(), DType::kF32), dlogits = Tensor::empty(logits.shape(), DType::kF32);
    route_backward(logits, rule, forward.experts, forward.weights, dweights, expected);

    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard isa_guard(isa);
      const test::ThreadsGuard threads_guard(2);
      route_backward(logits, rule, forward.experts, forward.weights, dweights, dlogits);
      EXPECT_TRUE(test::same_bits(dlogits, expected)) << static_cast<int>(kind) << " isa " << static_cast<int>(isa);
    }
  }
}

}  // namespace
}  // namespace ptq::kernels
