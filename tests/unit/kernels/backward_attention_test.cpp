#include <gtest/gtest.h>

#include <cstring>

#include "kernels/backward_ops.h"
#include "tests/support/numeric_gradient.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor;

struct Inputs {
  Tensor q, k, v, dout;
};
Inputs random_inputs(int64_t tokens, const AttentionShape& shape, float deviation = 1.0f) {
  return {random_tensor({tokens, shape.heads * shape.head_dim}, DType::kF32, 1, deviation),
          random_tensor({tokens, shape.kv_heads * shape.head_dim}, DType::kF32, 2, deviation),
          random_tensor({tokens, shape.kv_heads * shape.v_head_dim}, DType::kF32, 3),
          random_tensor({tokens, shape.heads * shape.v_head_dim}, DType::kF32, 4)};
}

struct Gradients {
  Tensor dq, dk, dv;  ///< dk and dv by query head
};
Tensor filled_with_nan(Shape shape) {
  Tensor tensor = Tensor::empty(std::move(shape), DType::kF32);
  std::memset(tensor.raw(), 0xff, static_cast<size_t>(tensor.bytes()));
  return tensor;
}
Gradients backward(const Inputs& in, const std::vector<int64_t>& starts, const AttentionShape& shape, const Tensor& sinks = {}) {
  Gradients out{filled_with_nan(in.q.shape()), filled_with_nan(in.q.shape()), filled_with_nan(in.dout.shape())};
  causal_attention_backward(in.q, in.k, in.v, sinks, starts, shape, in.dout, out.dq, out.dk, out.dv);
  return out;
}
bool same_bits(const Gradients& a, const Gradients& b) {
  return test::same_bits(a.dq, b.dq) && test::same_bits(a.dk, b.dk) && test::same_bits(a.dv, b.dv);
}
void expect_as_differences(const Inputs& in, const std::vector<int64_t>& starts, const AttentionShape& shape, const Tensor& sinks = {}) {
  const Gradients out = backward(in, starts, shape, sinks);
  Tensor dk = Tensor::empty(in.k.shape(), DType::kF32), dv = Tensor::empty(in.v.shape(), DType::kF32);
  add_query_heads(out.dk, shape.kv_heads, shape.head_dim, dk);
  add_query_heads(out.dv, shape.kv_heads, shape.v_head_dim, dv);
  const auto op = [&] { return test::attention_in_f64(in.q, in.k, in.v, sinks, starts, shape); };

  EXPECT_LT(test::gradient_error(out.dq, in.q, in.dout, op, 40), 2e-5);
  EXPECT_LT(test::gradient_error(dk, in.k, in.dout, op, 40), 2e-5);
  EXPECT_LT(test::gradient_error(dv, in.v, in.dout, op, 40), 2e-5);
}

TEST(AttentionBackward, AgreesWithDifferencesOnOddShapes) {
  for (const int64_t tokens : {1, 7, 33, 70, 130})
    for (const int64_t head_dim : {5, 64}) {
      if (tokens > 33 && head_dim > 5) continue;
      SCOPED_TRACE(std::to_string(tokens) + " tokens, D = " + std::to_string(head_dim));
      const AttentionShape shape{.heads = 2, .kv_heads = 2, .head_dim = head_dim, .v_head_dim = head_dim, .scale = 0.3f};

      expect_as_differences(random_inputs(tokens, shape), {0, tokens}, shape);
    }
}

TEST(AttentionBackward, GroupsOfQueryHeadsShareAKeyHead) {
  const AttentionShape shape{.heads = 6, .kv_heads = 2, .head_dim = 8, .v_head_dim = 8, .scale = 0.35f};

  expect_as_differences(random_inputs(33, shape), {0, 33}, shape);
}

TEST(AttentionBackward, ValuesMayHaveAnotherWidthThanKeys) {
  const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 40, .v_head_dim = 17, .scale = 0.15f};

  expect_as_differences(random_inputs(33, shape), {0, 33}, shape);
}

TEST(AttentionBackward, HeadsWiderThanABlockOfDepthWork) {
  const AttentionShape shape{.heads = 1, .kv_heads = 1, .head_dim = 300, .v_head_dim = 270, .scale = 0.06f};

  expect_as_differences(random_inputs(9, shape), {0, 9}, shape);
}

TEST(AttentionBackward, SequencesDoNotSeeEachOther) {
  const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 5, .v_head_dim = 6, .scale = 0.4f};

  expect_as_differences(random_inputs(110, shape), {0, 1, 34, 104, 110}, shape);
}

TEST(AttentionBackward, AWindowAndAChunkHideOlderKeys) {
  for (const int64_t limit : {1, 5, 33, 66, 100}) {
    SCOPED_TRACE(limit);
    AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 5, .v_head_dim = 5, .scale = 0.4f, .window = limit};
    const Inputs in = random_inputs(140, shape);
    expect_as_differences(in, {0, 140}, shape);
    shape.window = 0;
    shape.chunk = limit;
    expect_as_differences(in, {0, 140}, shape);
  }
}

TEST(AttentionBackward, SinksTakePartInTheSoftmax) {
  for (const int64_t window : {0, 20})
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const AttentionShape shape{.heads = 4, .kv_heads = 2, .head_dim = 5, .v_head_dim = 5, .scale = 0.4f, .window = window};

      expect_as_differences(random_inputs(33, shape), {0, 13, 33}, shape, test::tensor_of({2.0f, -1.0f, 0.0f, 9.0f}, {4}, dtype));
    }
}

TEST(AttentionBackward, LargeScoresNeitherOverflowNorVanish) {
  const AttentionShape shape{.heads = 1, .kv_heads = 1, .head_dim = 16, .v_head_dim = 8, .scale = 1.0f};
  const Inputs in = random_inputs(200, shape, 12.0f);  // scores of some hundreds: all but one weight of most queries are 0

  const Gradients out = backward(in, {0, 200}, shape);

  for (const Tensor& gradient : {out.dq, out.dk, out.dv}) EXPECT_EQ(amax(gradient).non_finite_row, -1);
}

TEST(AttentionBackward, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  for (const int64_t window : {0, 90}) {
    const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 20, .v_head_dim = 12, .scale = 0.25f, .window = window};
    const Inputs in = random_inputs(280, shape);
    const Tensor sinks = test::tensor_of({0.5f, -1.0f}, {2});
    const Gradients expected = backward(in, {0, 30, 280}, shape, sinks);

    for (const cpu::Isa isa : test::available_isas())
      for (const int threads : {1, 2, 3}) {
        const test::IsaGuard isa_guard(isa);
        const test::ThreadsGuard threads_guard(threads);
        EXPECT_TRUE(same_bits(backward(in, {0, 30, 280}, shape, sinks), expected)) << static_cast<int>(isa) << ", " << threads;
      }
  }
}

TEST(AttentionBackward, DoesNotDependOnTheOtherSequences) {
  const AttentionShape shape{.heads = 4, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f};
  const Inputs in = random_inputs(300, shape);
  const std::vector<int64_t> starts = {0, 37, 170, 300};
  const Gradients together = backward(in, starts, shape);

  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    const int64_t begin = starts[s], end = starts[s + 1];
    const Inputs part{in.q.rows(begin, end), in.k.rows(begin, end), in.v.rows(begin, end), in.dout.rows(begin, end)};
    const Gradients expected{together.dq.rows(begin, end), together.dk.rows(begin, end), together.dv.rows(begin, end)};
    EXPECT_TRUE(same_bits(backward(part, {0, end - begin}, shape), expected)) << s;
  }
}

TEST(AddQueryHeads, AddsTheHeadsOfAGroupInOrder) {
  const Tensor x = random_tensor({7, 2 * 3 * 5}, DType::kF32, 5);
  Tensor out = Tensor::empty({7, 2 * 5}, DType::kF32);

  add_query_heads(x, 2, 5, out);

  for (int64_t t = 0; t < 7; ++t)
    for (int64_t group = 0; group < 2; ++group)
      for (int64_t c = 0; c < 5; ++c) {
        const float* const first = x.data<float>() + t * 30 + group * 15 + c;
        ASSERT_EQ(out.data<float>()[t * 10 + group * 5 + c], first[0] + first[5] + first[10]);
      }
}

}  // namespace
}  // namespace ptq::kernels
