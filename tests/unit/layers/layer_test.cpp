#include "layers/layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tests/unit/layers/tiny_layer.h"

namespace ptq::layers {
namespace {

/// The formulas of a decoder layer once more, in f64, one token after the other, from nothing but tensors by name and plain numbers.
class PlainLayer {
 public:
  struct Choices {
    std::string prefix = "model.layers.0";
    size_t heads = 0, kv_heads = 0, head_dim = 0, rotary_dim = 0, window = 0;
    double theta = 10000, eps = 1e-5;
    bool layer_norm_1p = false, relu_squared = false;
  };

  PlainLayer(Choices choices, const std::map<std::string, Tensor>& tensors) : c_(std::move(choices)) {
    for (const auto& [name, tensor] : tensors) {
      const std::vector<float> values = test::values_of(tensor);
      tensors_[name] = {values.begin(), values.end()};
    }
  }

  using Row = std::vector<double>;
  /// One sequence, whole.
  std::vector<Row> forward(std::vector<Row> h) const {
    if (has(".input_layernorm.weight"))
      add(h, has(".self_attn.q_proj.weight") ? attention(h) : each(h, ".input_layernorm", ".self_attn.linear_attn"));
    if (has(".post_attention_layernorm.weight")) {
      std::vector<Row> out;
      if (has(".mlp.linear_mlp.weight")) {
        out = each(h, ".post_attention_layernorm", ".mlp.linear_mlp");
      } else {
        for (const Row& x : h) out.push_back(mlp(norm(x, ".post_attention_layernorm")));
      }
      add(h, out);
    }
    return h;
  }

 private:
  bool has(const std::string& name) const { return tensors_.count(c_.prefix + name) > 0; }
  const Row& at(const std::string& name) const { return tensors_.at(c_.prefix + name); }

  static void add(std::vector<Row>& h, const std::vector<Row>& y) {
    for (size_t t = 0; t < h.size(); ++t)
      for (size_t i = 0; i < h[t].size(); ++i) h[t][i] += y[t][i];
  }

  Row linear(const Row& x, const std::string& module) const {
    const Row& w = at(module + ".weight");
    Row y(w.size() / x.size(), 0.0);
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
      if (has(module + ".bias")) y[o] += at(module + ".bias")[o];
    }
    return y;
  }

  std::vector<Row> each(const std::vector<Row>& h, const std::string& norm_name, const std::string& module) const {
    std::vector<Row> out;
    for (const Row& x : h) out.push_back(linear(norm(x, norm_name), module));
    return out;
  }

  Row norm(const Row& x, const std::string& module) const {
    double mean = 0, square = 0;
    if (c_.layer_norm_1p)
      for (const double v : x) mean += v / static_cast<double>(x.size());
    for (const double v : x) square += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = (x[i] - mean) / std::sqrt(square + c_.eps) * (at(module + ".weight")[i] + (c_.layer_norm_1p ? 1 : 0));
      if (c_.layer_norm_1p) y[i] += at(module + ".bias")[i];
    }
    return y;
  }

  Row mlp(const Row& x) const {
    Row up = linear(x, ".mlp.up_proj");
    if (c_.relu_squared) {
      for (double& u : up) u = u > 0 ? u * u : 0;
    } else {
      const Row gate = linear(x, ".mlp.gate_proj");
      for (size_t i = 0; i < up.size(); ++i) up[i] *= gate[i] / (1 + std::exp(-gate[i]));
    }
    return linear(up, ".mlp.down_proj");
  }

  /// q/k norm and rotation of every head of one token.
  void prepare_heads(Row& x, const std::string& norm_name, size_t position) const {
    for (size_t head = 0; head < x.size() / c_.head_dim; ++head) {
      double* const v = x.data() + head * c_.head_dim;
      if (has(norm_name + ".weight")) {
        const Row normed = norm(Row(v, v + c_.head_dim), norm_name);
        std::copy(normed.begin(), normed.end(), v);
      }
      for (size_t i = 0; i < c_.rotary_dim / 2; ++i) {
        const double angle =
            static_cast<double>(position) * std::pow(c_.theta, -2.0 * static_cast<double>(i) / static_cast<double>(c_.rotary_dim));
        const double a = v[i], b = v[i + c_.rotary_dim / 2];
        v[i] = a * std::cos(angle) - b * std::sin(angle);
        v[i + c_.rotary_dim / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }

  std::vector<Row> attention(const std::vector<Row>& h) const {
    std::vector<Row> q, k, v, out;
    for (size_t t = 0; t < h.size(); ++t) {
      const Row x = norm(h[t], ".input_layernorm");
      q.push_back(linear(x, ".self_attn.q_proj"));
      k.push_back(linear(x, ".self_attn.k_proj"));
      v.push_back(linear(x, ".self_attn.v_proj"));
      prepare_heads(q.back(), ".self_attn.q_norm", t);
      prepare_heads(k.back(), ".self_attn.k_norm", t);
    }
    const size_t d = c_.head_dim;
    for (size_t t = 0; t < h.size(); ++t) {
      Row mixed(c_.heads * d, 0.0);
      const size_t first = c_.window > 0 && t + 1 > c_.window ? t + 1 - c_.window : 0;
      for (size_t head = 0; head < c_.heads; ++head) {
        const size_t kv = head * c_.kv_heads / c_.heads;
        Row weights;
        double total = 0;
        for (size_t s = first; s <= t; ++s) {
          double score = 0;
          for (size_t i = 0; i < d; ++i) score += q[t][head * d + i] * k[s][kv * d + i];
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(d))));
          total += weights.back();
        }
        for (size_t s = first; s <= t; ++s)
          for (size_t i = 0; i < d; ++i) mixed[head * d + i] += weights[s - first] / total * v[s][kv * d + i];
      }
      out.push_back(linear(mixed, ".self_attn.o_proj"));
    }
    return out;
  }

  Choices c_;
  std::map<std::string, Row> tensors_;
};

/// Remembers which linears' inputs and which keys and values the layer showed.
class Witness : public LayerHooks {
 public:
  void linear_input(const LayerSpec& layer, int input_group, const Tensor& x, const Batch&) override {
    EXPECT_TRUE(inputs.emplace(input_group, x.dim(1)).second) << "input group " << input_group << " shown twice";
    for (const int linear : layer.input_group(input_group)) EXPECT_EQ(x.dim(1), layer.linears[static_cast<size_t>(linear)].in);
  }
  Tensor quantized_input(const LayerSpec& layer, int linear, const Tensor& x) override {
    EXPECT_TRUE(linears.insert(layer.linears[static_cast<size_t>(linear)].module).second);
    return x;
  }
  void key_value(const LayerSpec&, Tensor& k, Tensor& v, const Batch&) override { key_value_widths = {k.dim(1), v.dim(1)}; }

  std::map<int, int64_t> inputs;
  std::set<std::string> linears;
  std::pair<int64_t, int64_t> key_value_widths{0, 0};
};

/// Computes layer 0 of the model in fp32 over two sequences at once and compares with the plain layer, sequence by sequence.
void expect_plain(const ModelSpec& model, PlainLayer::Choices choices, Witness& witness) {
  const LayerSpec& layer = model.layers[0];
  const std::vector<int64_t> lengths{13, 6};
  const Batch batch = make_batch(0, lengths);
  const auto tensors = test::random_layer(layer, DType::kF32, 40);
  Tensor hidden = test::random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
  const std::vector<float> before = test::values_of(hidden);
  const RopeTables rope = make_rope_tables(model.rope, 13);
  const auto self = parallel::make_self_communicator();
  Workspace workspace;

  forward_layer(layer, test::slice_of(layer, tensors, 1, 0), batch,
                {DType::kF32, &rope, model.rope.rotary_dim, self.get(), &witness, &workspace}, hidden);

  const PlainLayer plain(std::move(choices), tensors);
  const auto width = static_cast<size_t>(model.hidden);
  std::vector<double> expected;
  for (size_t s = 0; s < lengths.size(); ++s) {
    std::vector<PlainLayer::Row> rows;
    for (int64_t t = batch.starts[s]; t < batch.starts[s + 1]; ++t) {
      const float* const row = before.data() + static_cast<size_t>(t) * width;
      rows.emplace_back(row, row + width);
    }
    for (const auto& row : plain.forward(rows)) expected.insert(expected.end(), row.begin(), row.end());
  }
  EXPECT_LT(test::relative_error(hidden, expected), 5e-6);
}

TEST(ForwardLayer, LlamaWithFewerKeyValueHeadsAndASlidingWindow) {
  const ModelSpec model = test::model_of(R"({"architectures": ["MistralForCausalLM"], "hidden_size": 24, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 50, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-5,
    "rope_theta": 100.0, "sliding_window": 5})");
  Witness witness;

  expect_plain(model, {.heads = 6, .kv_heads = 2, .head_dim = 8, .rotary_dim = 8, .window = 5, .theta = 100}, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 24}, {1, 48}, {2, 24}, {3, 50}}));
  EXPECT_EQ(witness.linears.size(), 7u) << "every linear asks for its input";
  EXPECT_EQ(witness.key_value_widths, (std::pair<int64_t, int64_t>{16, 16}));
}

TEST(ForwardLayer, LlamaWithBiases) {
  const ModelSpec model = test::model_of(R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 24, "num_attention_heads": 3,
    "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-3, "attention_bias": true, "mlp_bias": true})");
  Witness witness;

  expect_plain(model, {.heads = 3, .kv_heads = 3, .head_dim = 8, .rotary_dim = 8, .eps = 1e-3}, witness);
}

TEST(ForwardLayer, Qwen3NormsTheHeadsBeforeItTurnsThem) {
  const ModelSpec model = test::model_of(R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 20, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 30, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-5})");
  Witness witness;

  expect_plain(model, {.heads = 4, .kv_heads = 2, .head_dim = 6, .rotary_dim = 6}, witness);
}

TEST(ForwardLayer, NemotronTurnsHalfAHeadAndSquaresItsMlp) {
  const ModelSpec model = test::model_of(R"({"architectures": ["NemotronForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 9, "norm_eps": 1e-5})");
  Witness witness;

  expect_plain(model, {.heads = 4, .kv_heads = 2, .head_dim = 8, .rotary_dim = 4, .layer_norm_1p = true, .relu_squared = true}, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 32}, {1, 32}, {2, 32}, {3, 48}}));
  EXPECT_EQ(witness.linears.size(), 6u);
}

TEST(ForwardLayer, DeciLmReplacesAttentionByOneLinear) {
  const ModelSpec model = test::model_of(R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": null, "num_hidden_layers": 1, "vocab_size": 9, "rms_norm_eps": 1e-5,
    "block_configs": [{"attention": {"replace_with_linear": true}, "ffn": {"replace_with_linear": true}}]})");
  Witness witness;

  expect_plain(model, {}, witness);

  EXPECT_EQ(witness.inputs, (std::map<int, int64_t>{{0, 16}, {2, 16}}));
}

TEST(ForwardLayer, ALayerOfNoOpsChangesNothing) {
  const ModelSpec model = test::model_of(R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 16, "num_attention_heads": 2,
    "num_hidden_layers": 1, "vocab_size": 9, "block_configs": [{"attention": {"no_op": true}, "ffn": {"no_op": true}}]})");
  Witness witness;

  expect_plain(model, {}, witness);

  EXPECT_TRUE(witness.linears.empty());
}

TEST(Batch, CountsPositionsFromEachSequencesStart) {
  const Batch batch = make_batch(40, {3, 1, 2});

  EXPECT_EQ(batch.starts, (std::vector<int64_t>{0, 3, 4, 6}));
  EXPECT_EQ(batch.tokens(), 6);
  const int32_t* const positions = batch.positions.data<int32_t>();
  EXPECT_EQ(std::vector<int32_t>(positions, positions + 6), (std::vector<int32_t>{0, 1, 2, 0, 0, 1}));
  const std::vector<int64_t> rows{40, 40, 40, 41, 42, 42};
  for (int64_t t = 0; t < 6; ++t) EXPECT_EQ(batch.row_of(t), rows[static_cast<size_t>(t)]) << t;
}

TEST(Workspace, GivesTheSameMemoryForTheSameNameUntilMoreIsAsked) {
  Workspace workspace;

  const Tensor first = workspace.get("x", {4, 8}, DType::kF32), smaller = workspace.get("x", {5, 3}, DType::kBF16);
  const Tensor other = workspace.get("y", {4, 8}, DType::kF32);

  EXPECT_EQ(first.raw(), smaller.raw());
  EXPECT_NE(first.raw(), other.raw());
  EXPECT_EQ(smaller.shape(), (Shape{5, 3}));
  EXPECT_EQ(smaller.dtype(), DType::kBF16);
  EXPECT_EQ(workspace.get("x", {100, 8}, DType::kF32).shape(), (Shape{100, 8}));
}

}  // namespace
}  // namespace ptq::layers
