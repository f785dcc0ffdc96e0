#pragma once
// A model, plain or quantized, as a server would run it: weights dequantized from the file, inputs of quantized linears and the KV cache
// quantized as their scales say. Gives logits for token rows, streaming the layers.

#include <map>
#include <string>
#include <vector>

#include "recipes/kv_cache.h"
#include "runner/stored_encoding.h"
#include "runner/sweep.h"

namespace ptq::runner {

struct EvaluateSettings {
  bool fp32 = false;          ///< f32 matrix product inputs instead of bf16
  bool weights_only = false;  ///< leave activations and KV cache as they are
  int64_t host_memory = 0;
  std::string scratch;
};

/// The sweep's client: decodes weights, quantizes inputs.
class EvaluationClient : public SweepClient, public layers::LayerHooks {
 public:
  EvaluationClient(const SourceModel& source, const EvaluateSettings& settings);

  std::vector<layers::TensorSpec> tensors(const layers::LayerSpec& layer) const override;
  double expansion() const override { return quantized_ ? 8.0 : 1.0; }
  layers::LayerWeights weights(const LayerTensors& tensors) const override;
  layers::ExpertWeights expert_weights(const ExpertChunk& chunk, int expert) const override;
  layers::LayerHooks& hooks() override { return *this; }
  Tensor quantized_input(const layers::LayerSpec& layer, int linear, const Tensor& x) override;
  void key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch& batch) override;

  bool quantized() const { return quantized_; }
  const recipes::Encoding& encoding(const std::string& module) const { return encodings_.at(module); }
  /// What is not by rows, of a quantized linear.
  const recipes::LinearScales& scales(const std::string& module) const { return scales_.at(module); }
  /// What is stored of the KV cache of an attention block, which is quantized.
  const recipes::KvScales& kv_scales(const std::string& attention) const { return kv_scales_.at(attention); }
  /// True when this linear's input is not left as it is.
  bool changes_input(const std::string& module) const;
  /// In place on x [T, in] f32.
  void change_input(const std::string& module, Tensor& x) const;

 private:
  const SourceModel& source_;
  const EvaluateSettings& settings_;
  std::map<std::string, recipes::Encoding> encodings_;
  std::map<std::string, recipes::LinearScales> scales_;
  recipes::KvFormats kv_formats_;
  std::map<std::string, recipes::KvScales> kv_scales_;  ///< by attention module, of those whose cache is quantized
  bool quantized_ = false;
  Tensor quantized_copy_;
};

class EvaluatedModel {
 public:
  /// Opens and checks a model, plain or quantized, so that the constructor meets no surprise. Throws data and user Errors.
  /// `config`: as open_source has it.
  static SourceModel open(const std::string& folder, const std::string& config);
  /// Runs the decoder over this rank's rows. Collective over the world of `mesh` (data only).
  EvaluatedModel(SourceModel source, const parallel::Mesh& mesh, TokenRows rows, const EvaluateSettings& settings);

  /// Reads final norm and output projection: every rank a share of the rows, gathered. Collective over the world.
  void load_head();
  int64_t micro_batches() const { return sweep_.micro_batches(); }
  const layers::Batch& batch(int64_t m) const { return sweep_.batch(m); }
  int64_t vocab() const { return source_.spec.vocab; }
  const SourceModel& source() const { return source_; }
  /// The normed final states of micro-batch m, [T, H] in the product's input dtype (f32 where lm_head's input is quantized).
  Tensor final_states(int64_t m);
  /// Logits [n, V] f32 of rows [begin, end) of final_states.
  void logits(const Tensor& states, int64_t begin, int64_t end, Tensor& out);

 private:
  SourceModel source_;
  EvaluateSettings settings_;
  const parallel::Mesh& mesh_;
  EvaluationClient client_;
  Sweep sweep_;
  std::map<std::string, Tensor> vectors_;
  Tensor head_;
};

}  // namespace ptq::runner
