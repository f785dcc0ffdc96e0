#pragma once
// The formulas of a decoder layer once more, in f64, one token after the other, from nothing but tensors by name and plain numbers. Knows
// every kind of attention and MLP, but no routed experts.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/layers/tiny_layer.h"

namespace ptq::test {

class PlainLayer {
 public:
  struct Choices {
    std::string prefix = "model.layers.0";
    size_t heads = 0, kv_heads = 0, head_dim = 0, rotary_dim = 0, window = 0;
    double theta = 10000, eps = 1e-5;
    bool layer_norm_1p = false, relu_squared = false;

    size_t chunk = 0;
    bool interleaved = false, l2_norm = false;
    double temperature = 0, temperature_floor = 1;
    double scale = 0;                 ///< on q·k; 0: 1/sqrt(head_dim)
    std::vector<double> frequencies;  ///< of the rotation; empty: theta's
    double table_factor = 1;          ///< on cos and sin
    std::string mlp = ".mlp";         ///< module of the MLP

    size_t latent = 0, nope = 0, v_head_dim = 0;  ///< latent attention, its rotated dims are rotary_dim; 0: another attention
    double latent_eps = 1e-6;
  };

  PlainLayer(Choices choices, const std::map<std::string, Tensor>& tensors) : c_(std::move(choices)) {
    for (const auto& [name, tensor] : tensors) {
      const std::vector<float> values = values_of(tensor);
      tensors_[name] = {values.begin(), values.end()};
    }
    if (c_.scale == 0) c_.scale = 1 / std::sqrt(static_cast<double>(c_.head_dim));
    for (size_t i = 0; i < c_.rotary_dim / 2 && c_.frequencies.size() < c_.rotary_dim / 2; ++i)
      c_.frequencies.push_back(std::pow(c_.theta, -2.0 * static_cast<double>(i) / static_cast<double>(c_.rotary_dim)));
  }

  using Row = std::vector<double>;
  /// One sequence after the first block.
  std::vector<Row> attended(std::vector<Row> h) const {
    if (has(".self_attn.o_proj.weight"))
      add(h, c_.latent > 0 ? latent_attention(h) : attention(h));
    else if (has(".input_layernorm.weight"))
      add(h, each(h, ".input_layernorm", ".self_attn.linear_attn"));
    return h;
  }
  /// One sequence, whole.
  std::vector<Row> forward(const std::vector<Row>& before) const {
    std::vector<Row> h = attended(before);
    if (!has(".post_attention_layernorm.weight")) return h;
    std::vector<Row> out;
    if (has(".mlp.linear_mlp.weight")) {
      out = each(h, ".post_attention_layernorm", ".mlp.linear_mlp");
    } else if (has(c_.mlp + ".up_proj.weight")) {
      for (const Row& x : h) out.push_back(mlp(norm(x, ".post_attention_layernorm")));
    }
    if (!out.empty()) add(h, out);
    return h;
  }
  /// What the MLP of the layer, or its router, reads of a token after attention.
  Row norm(const Row& x, const std::string& module = ".post_attention_layernorm") const { return norm(x, module, c_.eps); }

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

  Row norm(const Row& x, const std::string& module, double eps) const {
    double mean = 0, square = 0;
    if (c_.layer_norm_1p)
      for (const double v : x) mean += v / static_cast<double>(x.size());
    for (const double v : x) square += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = (x[i] - mean) / std::sqrt(square + eps) * (module.empty() ? 1 : at(module + ".weight")[i] + (c_.layer_norm_1p ? 1 : 0));
      if (c_.layer_norm_1p) y[i] += at(module + ".bias")[i];
    }
    return y;
  }

  Row mlp(const Row& x) const {
    Row up = linear(x, c_.mlp + ".up_proj");
    if (c_.relu_squared) {
      for (double& u : up) u = u > 0 ? u * u : 0;
    } else {
      const Row gate = linear(x, c_.mlp + ".gate_proj");
      for (size_t i = 0; i < up.size(); ++i) up[i] *= gate[i] / (1 + std::exp(-gate[i]));
    }
    return linear(up, c_.mlp + ".down_proj");
  }

  void turn(double* v, size_t position) const {
    for (size_t i = 0; i < c_.rotary_dim / 2; ++i) {
      const double angle = static_cast<double>(position) * c_.frequencies[i];
      double& a = v[c_.interleaved ? 2 * i : i];
      double& b = v[c_.interleaved ? 2 * i + 1 : i + c_.rotary_dim / 2];
      const double first = a, cosine = c_.table_factor * std::cos(angle), sine = c_.table_factor * std::sin(angle);
      a = first * cosine - b * sine;
      b = b * cosine + first * sine;
    }
  }

  void norm_head(double* v, const std::string& module) const {
    const Row normed = norm(Row(v, v + c_.head_dim), module, c_.eps);
    std::copy(normed.begin(), normed.end(), v);
  }

  /// q/k norm and rotation of every head of one token.
  void prepare_heads(Row& x, const std::string& norm_name, size_t position) const {
    for (size_t head = 0; head < x.size() / c_.head_dim; ++head) {
      double* const v = x.data() + head * c_.head_dim;
      if (has(norm_name + ".weight")) norm_head(v, norm_name);
      turn(v, position);
      if (c_.l2_norm) norm_head(v, "");
    }
  }

  std::vector<Row> attention(const std::vector<Row>& h) const {
    std::vector<Row> q, k, v;
    for (size_t t = 0; t < h.size(); ++t) {
      const Row x = norm(h[t], ".input_layernorm");
      q.push_back(linear(x, ".self_attn.q_proj"));
      k.push_back(linear(x, ".self_attn.k_proj"));
      v.push_back(linear(x, ".self_attn.v_proj"));
      prepare_heads(q.back(), ".self_attn.q_norm", t);
      prepare_heads(k.back(), ".self_attn.k_norm", t);
      const double factor = 1 + c_.temperature * std::log(1 + std::floor(static_cast<double>(t + 1) / c_.temperature_floor));
      for (double& value : q.back()) value *= factor;
    }
    return mixed(q, k, v, c_.kv_heads, c_.head_dim);
  }

  /// DeepSeek's: keys and values come out of one narrow vector, and the rotated part of the key is one for all heads.
  std::vector<Row> latent_attention(const std::vector<Row>& h) const {
    std::vector<Row> q, k, v;
    for (size_t t = 0; t < h.size(); ++t) {
      const Row x = norm(h[t], ".input_layernorm");
      if (has(".self_attn.q_proj.weight"))
        q.push_back(linear(x, ".self_attn.q_proj"));
      else
        q.push_back(linear(norm(linear(x, ".self_attn.q_a_proj"), ".self_attn.q_a_layernorm", c_.latent_eps), ".self_attn.q_b_proj"));
      for (size_t head = 0; head < c_.heads; ++head) turn(q.back().data() + head * c_.head_dim + c_.nope, t);

      Row latent = linear(x, ".self_attn.kv_a_proj_with_mqa"), turned(latent.begin() + static_cast<int64_t>(c_.latent), latent.end());
      turn(turned.data(), t);
      latent.resize(c_.latent);
      const Row kv = linear(norm(latent, ".self_attn.kv_a_layernorm", c_.latent_eps), ".self_attn.kv_b_proj");
      k.emplace_back();
      v.emplace_back();
      for (size_t head = 0; head < c_.heads; ++head) {
        const auto begin = kv.begin() + static_cast<int64_t>(head * (c_.nope + c_.v_head_dim));
        k.back().insert(k.back().end(), begin, begin + static_cast<int64_t>(c_.nope));
        k.back().insert(k.back().end(), turned.begin(), turned.end());
        v.back().insert(v.back().end(), begin + static_cast<int64_t>(c_.nope), begin + static_cast<int64_t>(c_.nope + c_.v_head_dim));
      }
    }
    return mixed(q, k, v, c_.heads, c_.v_head_dim);
  }

  /// The softmax of every head and o_proj.
  std::vector<Row> mixed(const std::vector<Row>& q, const std::vector<Row>& k, const std::vector<Row>& v, size_t kv_heads,
                         size_t v_dim) const {
    const size_t d = c_.head_dim;
    std::vector<Row> out;
    for (size_t t = 0; t < q.size(); ++t) {
      Row heads(c_.heads * v_dim, 0.0);
      size_t first = c_.window > 0 && t + 1 > c_.window ? t + 1 - c_.window : 0;
      if (c_.chunk > 0) first = t - t % c_.chunk;
      for (size_t head = 0; head < c_.heads; ++head) {
        const size_t kv = head * kv_heads / c_.heads;
        Row weights;
        double total = has(".self_attn.sinks") ? std::exp(at(".self_attn.sinks")[head]) : 0;
        for (size_t s = first; s <= t; ++s) {
          double score = 0;
          for (size_t i = 0; i < d; ++i) score += q[t][head * d + i] * k[s][kv * d + i];
          weights.push_back(std::exp(score * c_.scale));
          total += weights.back();
        }
        for (size_t s = first; s <= t; ++s)
          for (size_t i = 0; i < v_dim; ++i) heads[head * v_dim + i] += weights[s - first] / total * v[s][kv * v_dim + i];
      }
      out.push_back(linear(heads, ".self_attn.o_proj"));
    }
    return out;
  }

  Choices c_;
  std::map<std::string, Row> tensors_;
};

/// Remembers which linears' inputs and which keys and values a layer showed.
class Witness : public layers::LayerHooks {
 public:
  void linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch&) override {
    EXPECT_TRUE(inputs.emplace(input_group, x.dim(1)).second) << "input group " << input_group << " shown twice";
    for (const int linear : layer.input_group(input_group)) EXPECT_EQ(x.dim(1), layer.linears[static_cast<size_t>(linear)].in);
  }
  Tensor quantized_input(const layers::LayerSpec& layer, int linear, const Tensor& x) override {
    EXPECT_TRUE(linears.insert(layer.linears[static_cast<size_t>(linear)].module).second);
    return x;
  }
  void key_value(const layers::LayerSpec&, Tensor& k, Tensor& v, const layers::Batch&) override { key_value_widths = {k.dim(1), v.dim(1)}; }

  std::map<int, int64_t> inputs;
  std::set<std::string> linears;
  std::pair<int64_t, int64_t> key_value_widths{0, 0};
};

/// Computes layer 0 of the model in fp32 over two sequences at once and compares with the plain layer, sequence by sequence. Where the
/// layer ends in routed experts, what they would read is compared too.
inline void expect_plain(const layers::ModelSpec& model, PlainLayer::Choices choices, Witness& witness) {
  const layers::LayerSpec& layer = model.layers[0];
  const std::vector<int64_t> lengths{13, 6};
  const layers::Batch batch = layers::make_batch(0, lengths);
  const auto tensors = random_layer(layer, DType::kF32, 40);
  Tensor hidden = random_tensor({batch.tokens(), model.hidden}, DType::kF32, 7);
  const std::vector<float> before = values_of(hidden);
  const layers::RopeTables rope = layers::make_rope_tables(model.rope, 13);
  const auto self = parallel::make_self_communicator();
  layers::Workspace workspace;

  const Tensor routed = layers::forward_layer(layer, slice_of(layer, tensors, 1, 0), batch,
                                              {DType::kF32, &rope, model.rope.rotary_dim, self.get(), &witness, &workspace}, hidden);

  const PlainLayer plain(std::move(choices), tensors);
  const auto width = static_cast<size_t>(model.hidden);
  std::vector<double> expected, expected_routed;
  for (size_t s = 0; s < lengths.size(); ++s) {
    std::vector<PlainLayer::Row> rows;
    for (int64_t t = batch.starts[s]; t < batch.starts[s + 1]; ++t) {
      const float* const row = before.data() + static_cast<size_t>(t) * width;
      rows.emplace_back(row, row + width);
    }
    for (const auto& row : plain.forward(rows)) expected.insert(expected.end(), row.begin(), row.end());
    if (!layer.moe()) continue;
    for (const auto& row : plain.attended(rows)) {
      const PlainLayer::Row x = plain.norm(row);
      expected_routed.insert(expected_routed.end(), x.begin(), x.end());
    }
  }
  EXPECT_LT(relative_error(hidden, expected), 5e-6);
  ASSERT_EQ(routed.defined(), layer.moe() != nullptr);
  if (!routed.defined()) return;
  EXPECT_LT(relative_error(routed, expected_routed), 5e-6);
}

}  // namespace ptq::test
