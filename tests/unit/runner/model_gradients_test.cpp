// The backward pass against PyTorch's: the gradients of whole trained models in fp32.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <set>

#include "kernels/backward_ops.h"
#include "runner/embedding.h"
#include "runner/source_model.h"
#include "tests/support/model_files.h"
#include "tests/support/shared_folder.h"
#include "tests/unit/layers/whole_layer.h"

namespace ptq::runner {
namespace {

/// Compares what the pass back makes with what PyTorch wrote down, and keeps the largest errors.
class Comparison : public layers::GradientHooks {
 public:
  explicit Comparison(test::StoredTensors expected) : expected_(std::move(expected)) {}

  void linear_gradient(const layers::LayerSpec& layer, int linear, const Tensor&, const Tensor&, const Tensor& dy,
                       const layers::Batch&) override {
    compare(layer.linears[static_cast<size_t>(linear)].module, dy);
  }

  void compare(const std::string& name, const Tensor& gradient) {
    const std::vector<float> found = test::values_of(gradient);
    double square = 0;
    for (const float value : found) square += static_cast<double>(value) * static_cast<double>(value);
    check_sum("norm." + name, std::sqrt(square));
    check_sum("sumsq." + name, square);
    const auto whole = expected_.find("grad." + name);
    if (whole == expected_.end()) return;
    const std::vector<double> wanted = whole->second.values();
    ASSERT_EQ(found.size(), wanted.size()) << name;
    double distance = 0, length = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      distance += std::pow(static_cast<double>(found[i]) - wanted[i], 2);
      length += wanted[i] * wanted[i];
    }
    note("grad." + name, std::sqrt(distance / length), largest_);
  }

  /// Every gradient that PyTorch wrote down of a linear or a layer has been compared.
  void expect_all_seen() const {
    for (const auto& [name, tensor] : expected_) {
      // The router is no linear of the layer: what it passes on is part of the gradient by the layer's input.
      if (name == "loss" || name == "input_ids" || name.ends_with(".router")) continue;
      EXPECT_TRUE(seen_.count(name)) << name;
    }
  }
  double largest() const { return largest_; }
  double largest_sum() const { return largest_sum_; }
  size_t count() const { return seen_.size(); }

 private:
  void check_sum(const std::string& name, double found) {
    const auto wanted = expected_.find(name);
    if (wanted == expected_.end()) return;
    const auto value = static_cast<double>(wanted->second.scalar());
    note(name, std::fabs(found - value) / value, largest_sum_);
  }
  void note(const std::string& name, double error, double& largest) {
    seen_.insert(name);
    EXPECT_LE(error, 1e-4) << name;  // 5e-6 where this was written
    largest = std::max(largest, error);
  }

  test::StoredTensors expected_;
  std::set<std::string> seen_;
  double largest_ = 0, largest_sum_ = 0;
};

/// FP8 blocks in f32, as PyTorch multiplied them: the runner's own reader rounds them to bf16.
std::map<std::string, Tensor> layer_tensors(const SourceModel& source, const layers::LayerSpec& layer) {
  std::map<std::string, Tensor> tensors;
  for (const auto& spec : layer.tensors) {
    const Tensor stored = source.reader->read(spec.name);
    Tensor& tensor = tensors[spec.name] = stored;
    if (!source.reader->find(spec.name + "_scale_inv")) continue;
    tensor = Tensor::empty(stored.shape(), DType::kF32);
    kernels::dequantize_fp8_blocks(stored, source.reader->read(spec.name + "_scale_inv"), {}, tensor);
  }
  return tensors;
}

/// The mean loss of predicting each row's next tokens from hidden [T, H], and the gradient by hidden.
std::pair<double, Tensor> loss_and_gradient(const SourceModel& source, const Tensor& hidden, const std::vector<int32_t>& ids,
                                            int64_t length) {
  const std::string norm_name = source.spec.final_norm.module + ".weight";
  const std::map<std::string, Tensor> vectors{{norm_name, source.reader->read(norm_name)}};
  const Tensor head = source.reader->read(source.spec.head_weight());
  Tensor x = Tensor::empty(hidden.shape(), DType::kF32), logits = Tensor::empty({hidden.dim(0), head.dim(0)}, DType::kF32);
  layers::apply_norm(source.spec.final_norm, vectors, hidden, x);
  kernels::matmul(x, head, Tensor(), logits);

  Tensor labels = Tensor::empty({hidden.dim(0)}, DType::kI32);
  double loss = 0;
  int64_t positions = 0;
  for (int64_t t = 0; t < hidden.dim(0); ++t) {
    const bool is_last = (t + 1) % length == 0;
    labels.data<int32_t>()[t] = is_last ? -1 : ids[static_cast<size_t>(t + 1)];
    if (is_last) continue;
    const float* const row = logits.data<float>() + t * logits.dim(1);
    double sum = 0;
    for (int64_t v = 0; v < logits.dim(1); ++v) sum += std::exp(static_cast<double>(row[v]));
    loss += std::log(sum) - static_cast<double>(row[ids[static_cast<size_t>(t + 1)]]);
    ++positions;
  }
  kernels::cross_entropy_backward(logits, labels, 1.0f / static_cast<float>(positions));
  Tensor columns = Tensor::empty({head.dim(1), head.dim(0)}, head.dtype());
  kernels::transpose(head, columns);
  Tensor gradient = Tensor::empty(hidden.shape(), DType::kF32);
  kernels::matmul(logits, columns, Tensor(), gradient);
  kernels::rms_norm_backward(hidden, vectors.at(norm_name), source.spec.final_norm.eps, gradient, gradient);
  return {loss / static_cast<double>(positions), gradient};
}

void expect_gradients_of_pytorch(const std::string& folder) {
  const test::StoredTensors expected = test::read_tensors(folder + "/gradients.safetensors");
  const SourceModel source = open_source(folder, "", Shown::kFp8Blocks);
  const int64_t rows = expected.at("input_ids").shape[0], length = expected.at("input_ids").shape[1];
  std::vector<int32_t> ids;
  for (const double id : expected.at("input_ids").values()) ids.push_back(static_cast<int32_t>(id));
  const layers::Batch batch = layers::make_batch(0, std::vector<int64_t>(static_cast<size_t>(rows), length));
  const layers::RopeTables rope = layers::make_rope_tables(source.spec.rope, length);
  const auto self = parallel::make_self_communicator();

  std::vector<Tensor> hidden;  // before every layer, and after the last
  look_up_embeddings(*source.reader, source.reader->at(source.spec.embedding), {ids}, DType::kF32,
                     [&](int64_t, const Tensor& states) { hidden.push_back(test::copy_of(states)); });
  for (const auto& layer : source.spec.layers) {
    const auto tensors = layer_tensors(source, layer);
    hidden.push_back(test::copy_of(hidden.back()));
    test::WholeLayer(source.spec, layer, tensors, rope, DType::kF32, *self).forward(batch, hidden.back());
  }
  auto [loss, gradient] = loss_and_gradient(source, hidden.back(), ids, length);
  const auto wanted_loss = static_cast<double>(expected.at("loss").scalar());
  EXPECT_NEAR(loss, wanted_loss, 1e-4 * wanted_loss);
  Comparison comparison(expected);
  for (size_t i = source.spec.layers.size(); i-- > 0;) {
    const auto& layer = source.spec.layers[i];
    comparison.compare("layer_output." + std::to_string(i), gradient);
    const auto tensors = layer_tensors(source, layer);
    test::WholeLayer(source.spec, layer, tensors, rope, DType::kF32, *self).backward(batch, hidden[i], comparison, gradient);
  }
  comparison.compare("embeddings", gradient);

  comparison.expect_all_seen();
  std::cout << comparison.count() << " gradients, largest error " << comparison.largest() << ", of a norm " << comparison.largest_sum()
            << ", of the loss " << std::fabs(loss - wanted_loss) / wanted_loss << "\n";
}

class ModelGradients : public testing::TestWithParam<std::string> {};

TEST_P(ModelGradients, AreThoseOfPyTorch) {
  PTQ_NEEDS_SHARED(shared);
  expect_gradients_of_pytorch(shared + "/fixtures/models/" + GetParam());
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ModelGradients,
                         testing::Values("llama", "qwen3", "nemotron-nas", "qwen3-moe", "mixtral", "deepseek-v3", "llama4"),
                         [](const testing::TestParamInfo<std::string>& model) {
                           std::string name = model.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace ptq::runner
