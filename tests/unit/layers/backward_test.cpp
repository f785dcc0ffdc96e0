#include "layers/backward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/backward_ops.h"
#include "tests/unit/layers/layer_kinds.h"
#include "tests/unit/layers/tiny_experts.h"
#include "tests/unit/layers/whole_layer.h"

namespace ptq::layers {
namespace {

using test::copy_of;
using test::LayerKind;
using test::WholeLayer;

double dot(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = test::values_of(a), y = test::values_of(b);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return sum;
}

/// Relative to `wanted`, over those of its elements that are numbers: nearly all.
double distance(const std::vector<float>& found, const std::vector<double>& wanted) {
  double difference = 0, length = 0;
  size_t counted = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isnan(wanted[i])) continue;
    difference += std::pow(static_cast<double>(found[i]) - wanted[i], 2);
    length += wanted[i] * wanted[i];
    ++counted;
  }
  EXPECT_GE(static_cast<double>(counted), 0.97 * static_cast<double>(found.size()));
  return std::sqrt(difference / length);
}

/// The derivative of `value` by every element of x, from four values around it. NaN where two of them tell another derivative than the
/// other two: there a token is about to go to another expert, or a value meets a clamp.
std::vector<double> derivatives(Tensor& x, const std::function<double()>& value, float step = 0.01f) {
  std::vector<double> near, far;
  double square = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    float& element = x.data<float>()[i];
    const float centre = element;
    const auto slope = [&](float steps) {
      element = centre + steps * step;
      const double above = value();
      element = centre - steps * step;
      return (above - value()) / (2 * static_cast<double>(steps * step));
    };
    near.push_back(slope(1));
    far.push_back(slope(2));
    element = centre;
    square += near.back() * near.back();
  }
  const double mean = std::sqrt(square / static_cast<double>(near.size()));
  std::vector<double> found;
  for (size_t i = 0; i < near.size(); ++i)
    found.push_back(std::fabs(near[i] - far[i]) > 0.01 * mean ? std::nan("") : (4 * near[i] - far[i]) / 3);
  return found;
}

/// The linears that were shown, and that shapes are right.
class Witness : public GradientHooks {
 public:
  void linear_gradient(const LayerSpec& layer, int linear, const Tensor& x, const Tensor& y, const Tensor& dy,
                       const Batch& batch) override {
    const LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
    EXPECT_TRUE(linears.insert(linear).second) << spec.module << " shown twice";
    EXPECT_EQ(x.shape(), (Shape{batch.tokens(), spec.in}));
    EXPECT_EQ(y.shape(), (Shape{batch.tokens(), spec.out}));
    EXPECT_EQ(dy.shape(), y.shape());
  }
  void expert_gradient(const LayerSpec& layer, int expert, int linear, const Tensor& x, const Tensor& y, const Tensor& dy,
                       const ExpertVisits& visits) override {
    const LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
    EXPECT_EQ(x.dim(1), spec.in);
    EXPECT_EQ(y.shape(), (Shape{x.dim(0), spec.out}));
    EXPECT_EQ(dy.shape(), y.shape());
    EXPECT_FALSE(visits.forced);
    for (int64_t i = 1; i < x.dim(0); ++i) EXPECT_LT(visits.positions[i - 1], visits.positions[i]);
    visitors[{expert, linear}] += x.dim(0);
  }

  std::set<int> linears;
  std::map<std::pair<int, int>, int64_t> visitors;
};

TEST(BackwardLayer, IsTheDerivativeOfTheForwardPass) {
  for (const LayerKind& kind : test::layer_kinds()) {
    SCOPED_TRACE(kind.name);
    const ModelSpec model = test::model_of(kind.config);
    const LayerSpec& layer = model.layers[0];
    const auto tensors = test::random_layer(layer, DType::kF32, 3);
    const Batch batch = make_batch(0, {7, 1, 4});
    const RopeTables rope = make_rope_tables(model.rope, 7);
    const auto self = parallel::make_self_communicator();
    WholeLayer whole(model, layer, tensors, rope, DType::kF32, *self);
    Tensor hidden = test::random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
    const Tensor direction = test::random_tensor(hidden.shape(), DType::kF32, 8);
    const std::vector<double> wanted = derivatives(hidden, [&] {
      Tensor output = copy_of(hidden);
      whole.forward(batch, output);
      return dot(output, direction);
    });
    Tensor gradient = copy_of(direction);
    const Tensor before = copy_of(hidden);
    Witness witness;

    whole.backward(batch, hidden, witness, gradient);

    const double error = distance(test::values_of(gradient), wanted);
    EXPECT_LE(error, 1e-3);
    RecordProperty(kind.name, std::to_string(error));
    EXPECT_TRUE(test::same_bits(hidden, before));
    int64_t visits = 0;
    for (const auto& [key, count] : witness.visitors) visits += count;
    int64_t plain = 0;
    for (const auto& linear : layer.linears) plain += linear.is_routed() ? 0 : 1;
    EXPECT_EQ(static_cast<int64_t>(witness.linears.size()), plain) << "every linear is shown";
    if (layer.moe()) {
      const int64_t linears = layer.moe()->experts[0].gate_up >= 0 ? 2 : 3;
      EXPECT_EQ(visits, batch.tokens() * layer.moe()->router.top_k * linears);
    }
  }
}

/// Adds to keys and values what is written into `by_key` and `by_value`, and keeps what it saw last.
class Nudge : public LayerHooks {
 public:
  void key_value(const LayerSpec&, Tensor& k, Tensor& v, const Batch&) override {
    key = copy_of(k);
    value = copy_of(v);
    if (by_key.defined()) kernels::add_in_place(k, by_key);
    if (by_value.defined()) kernels::add_in_place(v, by_value);
  }

  Tensor key, value, by_key, by_value;
};

class KeyValueWitness : public GradientHooks {
 public:
  void key_value_gradient(const LayerSpec&, const Tensor& k, const Tensor& v, const Tensor& dk, const Tensor& dv) override {
    key = copy_of(k);
    value = copy_of(v);
    by_key = copy_of(dk);
    by_value = copy_of(dv);
  }

  Tensor key, value, by_key, by_value;
};

TEST(BackwardLayer, ShowsTheDerivativesByKeysAndValuesAsTheyAreCached) {
  for (const LayerKind& kind : test::layer_kinds()) {
    SCOPED_TRACE(kind.name);
    const ModelSpec model = test::model_of(kind.config);
    const LayerSpec& layer = model.layers[0];
    if (!layer.attention()) continue;
    const auto tensors = test::random_layer(layer, DType::kF32, 3);
    const Batch batch = make_batch(0, {5, 1, 4});
    const RopeTables rope = make_rope_tables(model.rope, 7);
    const auto self = parallel::make_self_communicator();
    WholeLayer whole(model, layer, tensors, rope, DType::kF32, *self);
    const Tensor hidden = test::random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
    const Tensor direction = test::random_tensor(hidden.shape(), DType::kF32, 8);
    KeyValueWitness witness;
    Tensor gradient = copy_of(direction);
    whole.backward(batch, hidden, witness, gradient);
    Nudge nudge;
    whole.set_hooks(nudge);
    const auto loss = [&] {
      Tensor output = copy_of(hidden);
      whole.forward(batch, output);
      return dot(output, direction);
    };
    loss();
    EXPECT_TRUE(test::same_bits(nudge.key, witness.key));
    EXPECT_TRUE(test::same_bits(nudge.value, witness.value));
    nudge.by_key = Tensor::zeros(witness.key.shape(), DType::kF32);
    nudge.by_value = Tensor::zeros(witness.value.shape(), DType::kF32);

    // One key moves the loss little: the step is wide enough to tell it from rounding.
    const std::vector<double> by_key = derivatives(nudge.by_key, loss, 0.04f), by_value = derivatives(nudge.by_value, loss);

    EXPECT_LE(distance(test::values_of(witness.by_key), by_key), 1e-3);
    EXPECT_LE(distance(test::values_of(witness.by_value), by_value), 1e-3);
    RecordProperty(kind.name, std::to_string(distance(test::values_of(witness.by_key), by_key)) + " " +
                                  std::to_string(distance(test::values_of(witness.by_value), by_value)));
  }
}

TEST(BackwardLayer, InBf16IsNearThatInFp32) {
  for (const LayerKind& kind : test::layer_kinds()) {
    SCOPED_TRACE(kind.name);
    const ModelSpec model = test::model_of(kind.config);
    if (model.layers[0].moe()) continue;  // rounding may send tokens to other experts
    const auto tensors = test::random_layer(model.layers[0], DType::kBF16, 3);
    const Batch batch = make_batch(0, {7, 1, 4});
    const RopeTables rope = make_rope_tables(model.rope, 7);
    const auto self = parallel::make_self_communicator();
    const Tensor hidden = test::random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
    Tensor exact = test::random_tensor(hidden.shape(), DType::kF32, 8), rounded = copy_of(exact);
    GradientHooks hooks;

    WholeLayer(model, model.layers[0], tensors, rope, DType::kF32, *self).backward(batch, hidden, hooks, exact);
    WholeLayer(model, model.layers[0], tensors, rope, DType::kBF16, *self).backward(batch, hidden, hooks, rounded);

    const std::vector<float> values = test::values_of(exact);
    EXPECT_LE(distance(test::values_of(rounded), {values.begin(), values.end()}), 0.02);
  }
}

TEST(BackwardExperts, AreTheDerivativesByTheirInputAndTheRoutersWeights) {
  for (const test::ExpertKind& kind : test::expert_kinds()) {
    SCOPED_TRACE(kind.name);
    const test::TinyExperts model(kind, {}, DType::kF32);
    GradientGroup group;
    group.tokens = test::random_tokens(11, model.sizes().hidden, DType::kF32);
    Workspace workspace;
    route_tokens(model.moe(), model.vectors, workspace, group.tokens);
    group.gradient = test::random_tensor(group.tokens.hidden.shape(), DType::kF32, 9);
    group.x_gradient = Tensor::zeros(group.tokens.hidden.shape(), DType::kF32);
    group.weight_gradient = Tensor::empty(group.tokens.weights.shape(), DType::kF32);
    const auto self = parallel::make_self_communicator();
    LayerHooks nothing;
    const auto loss = [&] {
      TokenGroup tokens = group.tokens;
      tokens.hidden = copy_of(group.tokens.hidden);
      test::run_chunks(model, model.sizes().experts, {}, nothing, *self, 0, tokens);
      return dot(tokens.hidden, group.gradient);
    };
    const std::vector<double> by_x = derivatives(group.tokens.x, loss), by_weights = derivatives(group.tokens.weights, loss);
    Witness witness;

    for (const auto& chunk : test::chunks_of(model.sizes().experts, 2))
      backward_experts(model.layer, {chunk, [&](int e) { return model.weights(e); }}, {DType::kF32, &nothing, &workspace, self.get(), 0},
                       witness, group);

    EXPECT_LE(distance(test::values_of(group.x_gradient), by_x), 1e-3);
    EXPECT_LE(distance(test::values_of(group.weight_gradient), by_weights), 1e-3);
  }
}

TEST(RowDots, AreRoundedOnce) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = test::random_tensor({33, 130}, dtype, 1), y = test::random_tensor({33, 130}, DType::kF32, 2);
    Tensor out = Tensor::empty({33, 1}, DType::kF32);

    kernels::row_dots(x, y, out);

    for (int64_t t = 0; t < 33; ++t)
      EXPECT_FLOAT_EQ(out.data<float>()[t], static_cast<float>(dot(x.rows(t, t + 1), y.rows(t, t + 1)))) << t;
  }
}

}  // namespace
}  // namespace ptq::layers
