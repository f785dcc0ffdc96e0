#include "runner/scoring.h"

#include <algorithm>
#include <chrono>

#include "checkpoint/files.h"
#include "kernels/backward_ops.h"
#include "layers/tensor_slices.h"
#include "runner/kv_scoring.h"
#include "runner/plain_client.h"
#include "runner/progress.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

class Scorer : public BackwardClient, private layers::GradientHooks {
 public:
  Scorer(const ScoringInput& input, const parallel::Mesh& mesh, const std::vector<std::unique_ptr<EvaluationClient>>& candidates,
         Sweep& sweep)
      : input_(input),
        mesh_(mesh),
        candidates_(candidates),
        sweep_(sweep),
        operand_(input.fp32 ? DType::kF32 : DType::kBF16),
        head_(input.model, mesh, operand_),
        kv_(*candidates[input.kv_scales], input.kv_formats, input.model.spec, mesh, sweep.workspace()),
        inputs_(candidates.size()),
        scores_(static_cast<size_t>(input.groups), std::vector<double>(candidates.size(), 0.0)) {}

  Tensor loss_gradient(int64_t m, parallel::Range tokens, const Tensor& hidden) override;
  void layer_begins(const layers::LayerSpec& layer, const std::vector<layers::LayerWeights>& weights) override;
  void chunk_begins(const std::vector<const ExpertChunk*>& chunks) override;
  layers::GradientHooks& hooks() override { return *this; }
  void layer_done(const layers::LayerSpec& layer) override;

  const std::vector<std::vector<double>>& scores() const { return scores_; }
  const std::vector<std::vector<double>>& kv_scores() const { return kv_.scores(); }
  /// The scores of the layer that was done last, for a later run, and those of an earlier one.
  const std::string& layer_scores() const { return layer_scores_; }
  void take(const std::string& layer_scores, const std::string& where);

 private:
  using Bins = std::vector<int64_t>;
  /// Equal ones read the same.
  struct InputKey {
    int64_t layer = 0;
    int input_group = 0;
    int64_t first_row = 0;
    recipes::Encoding encoding;
    float input_scale = 0;
    bool operator==(const InputKey&) const = default;
  };

  void linear_gradient(const layers::LayerSpec& layer, int linear, const Tensor& x, const Tensor& y, const Tensor& dy,
                       const layers::Batch& batch) override;
  void expert_gradient(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, const Tensor& y, const Tensor& dy,
                       const layers::ExpertVisits& visits) override;
  void key_value_gradient(const layers::LayerSpec& layer, const Tensor& k, const Tensor& v, const Tensor& dk, const Tensor& dv) override {
    kv_.add(layer, k, v, dk, dv);
  }
  /// `input` [T, C]: what a server would read instead of x.
  void score(const layers::LayerSpec& layer, int linear, size_t candidate, const layers::LinearWeights& weights, const Tensor& input,
             const Tensor& y, const Tensor& dy);
  Tensor as_operand(const Tensor& x) const { return x.dtype() == operand_ ? x : kernels::converted(x, operand_); }
  /// What a server would read, in the operand's dtype: made once for linears that share it.
  Tensor quantized(const layers::LayerSpec& layer, int linear, size_t candidate, const Tensor& x, const layers::Batch& batch);
  /// Does another tensor rank before this one have the same rows of the linear?
  bool is_replica(const layers::LayerSpec& layer, const layers::LinearSpec& linear) const;
  layers::LinearWeights as_operands(const layers::LinearWeights& weights) const {
    return {kernels::converted(weights.weight, operand_), weights.bias};
  }

  const ScoringInput& input_;
  const parallel::Mesh& mesh_;
  const std::vector<std::unique_ptr<EvaluationClient>>& candidates_;
  Sweep& sweep_;
  DType operand_;
  LossHead head_;
  KvScorer kv_;
  std::vector<std::vector<layers::LinearWeights>> weights_;  ///< [candidates][linears] of the layer
  std::vector<const ExpertChunk*> chunks_;
  int expert_ = -1;                                    ///< whose matrices are in expert_weights_
  std::vector<layers::ExpertWeights> expert_weights_;  ///< [candidates]
  std::map<std::pair<int, size_t>, Bins> sums_;        ///< by group and candidate, of the layer
  std::vector<std::pair<InputKey, Tensor>> inputs_;    ///< [candidates]: what quantized() gave last
  std::vector<std::vector<double>> scores_;
  std::string layer_scores_;
};

Tensor Scorer::loss_gradient(int64_t m, parallel::Range tokens, const Tensor& hidden) {
  const layers::Batch& batch = sweep_.batch(m);
  Tensor chances = Tensor::empty({tokens.size()}, DType::kF32);
  const auto* position = batch.positions.data<int32_t>();
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    // A row's last token predicts nothing.
    const bool is_last = t + 1 == batch.tokens() || position[t + 1] == 0;
    chances.data<float>()[t - tokens.begin] = is_last ? -1.0f : chance(input_.seed, batch.row_of(t), position[t]);
  }
  return head_.drawn_gradient(hidden, chances);
}

void Scorer::layer_begins(const layers::LayerSpec& layer, const std::vector<layers::LayerWeights>& weights) {
  weights_.assign(candidates_.size(), {});
  for (size_t c = 0; c < candidates_.size(); ++c) {
    weights_[c].resize(layer.linears.size());
    for (size_t i = 0; i < layer.linears.size(); ++i)
      if (const auto& one = weights[c + 1].linears[i];
          one.weight.defined() && candidates_[c]->encoding(layer.linears[i].module).is_quantized()) {
        // Codes come whole: their rows are not always those of the weight.
        const parallel::Range rows = layers::tensor_slice(layer.linears[i], layer.attention(), mesh_.shape().tensor, mesh_.tensor_rank());
        weights_[c][i] = as_operands({one.weight.rows(rows.begin, rows.end), one.bias});
      }
  }
  sums_.clear();
}

void Scorer::chunk_begins(const std::vector<const ExpertChunk*>& chunks) {
  chunks_ = chunks;
  expert_ = -1;
}

bool Scorer::is_replica(const layers::LayerSpec& layer, const layers::LinearSpec& linear) const {
  const int64_t ranks = mesh_.shape().tensor, rank = mesh_.tensor_rank();
  if (rank == 0) return false;
  const auto begin = [&](int64_t r) { return layers::tensor_slice(linear, layer.attention(), ranks, r).begin; };
  return begin(rank) == begin(rank - 1);
}

void Scorer::score(const layers::LayerSpec& layer, int linear, size_t candidate, const layers::LinearWeights& weights, const Tensor& input,
                   const Tensor& y, const Tensor& dy) {
  const auto group = input_.group_of.find(layer.linears[static_cast<size_t>(linear)].module);
  if (group == input_.group_of.end()) return;
  Tensor delta = sweep_.workspace().get("score_delta", y.shape(), DType::kF32);
  kernels::matmul(input, weights.weight, weights.bias, delta);
  kernels::subtract_in_place(delta, y);
  Bins& bins = sums_[{group->second, candidate}];
  bins.resize(kernels::kSumBins, 0);
  kernels::add_squared_products(dy, delta, bins);
}

Tensor Scorer::quantized(const layers::LayerSpec& layer, int linear, size_t candidate, const Tensor& x, const layers::Batch& batch) {
  const EvaluationClient& client = *candidates_[candidate];
  const layers::LinearSpec& spec = layer.linears[static_cast<size_t>(linear)];
  const InputKey key{layer.index, spec.input_group, batch.first_row, client.encoding(spec.module), client.scales(spec.module).input_scale};
  auto& [kept_key, kept] = inputs_[candidate];
  if (kept.defined() && kept_key == key) return kept;
  Tensor read = candidates_[candidate]->quantized_input(layer, linear, x);
  // Only a copy may be kept: x, and in f32 the client's own buffer, are used again.
  if (read.dtype() == operand_) return read;
  kept = as_operand(read);
  kept_key = key;
  return kept;
}

void Scorer::linear_gradient(const layers::LayerSpec& layer, int linear, const Tensor& x, const Tensor& y, const Tensor& dy,
                             const layers::Batch& batch) {
  if (is_replica(layer, layer.linears[static_cast<size_t>(linear)])) return;
  for (size_t c = 0; c < candidates_.size(); ++c)
    if (const auto& weights = weights_[c][static_cast<size_t>(linear)]; weights.weight.defined())
      score(layer, linear, c, weights, quantized(layer, linear, c, x, batch), y, dy);
}

void Scorer::expert_gradient(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, const Tensor& y, const Tensor& dy,
                             const layers::ExpertVisits&) {
  const layers::ExpertLinears& linears = layer.moe()->experts[static_cast<size_t>(expert)];
  if (expert != expert_) {
    expert_weights_.assign(candidates_.size(), {});
    for (size_t c = 0; c < candidates_.size(); ++c) {
      expert_weights_[c] = candidates_[c]->expert_weights(*chunks_[c + 1], expert);
      for (const int one : {linears.gate, linears.up, linears.gate_up, linears.down})
        if (one >= 0) expert_weights_[c].of(linears, one) = as_operands(expert_weights_[c].of(linears, one));
    }
    expert_ = expert;
  }
  for (size_t c = 0; c < candidates_.size(); ++c)
    if (candidates_[c]->encoding(layer.linears[static_cast<size_t>(linear)].module).is_quantized())
      score(layer, linear, c, expert_weights_[c].of(linears, linear), as_operand(candidates_[c]->quantized_input(layer, linear, x)), y, dy);
}

void Scorer::layer_done(const layers::LayerSpec& layer) {
  kv_.layer_done(layer);
  // Every rank has a place for each of the layer's groups and candidates, in the same order.
  std::map<std::pair<int, size_t>, Bins> all;
  for (const auto& linear : layer.linears)
    if (const auto group = input_.group_of.find(linear.module); group != input_.group_of.end())
      for (size_t c = 0; c < candidates_.size(); ++c) all[{group->second, c}] = Bins(kernels::kSumBins, 0);
  for (const auto& [key, bins] : sums_) all.at(key) = bins;
  Bins packed;
  for (const auto& [key, bins] : all) packed.insert(packed.end(), bins.begin(), bins.end());
  mesh_.world().all_reduce_sum(std::span<int64_t>(packed));
  size_t at = 0;
  Json linears = Json::array();
  for (const auto& [key, bins] : all) {
    const double score = kernels::value_of(std::span<const int64_t>(packed).subspan(at, kernels::kSumBins));
    scores_[static_cast<size_t>(key.first)][key.second] = score;
    linears.push_back({key.first, key.second, score});
    at += kernels::kSumBins;
  }
  const std::vector<uint8_t> bytes = Json::to_cbor({{"linears", linears}, {"layer", layer.index}, {"kv", kv_.scores_of(layer.index)}});
  layer_scores_ = {bytes.begin(), bytes.end()};
  sums_.clear();
  weights_.clear();
  expert_weights_.clear();
  chunks_.clear();
}

void Scorer::take(const std::string& layer_scores, const std::string& where) {
  try {
    const Json json = Json::from_cbor(layer_scores);
    kv_.take(json.at("layer").get<int64_t>(), json.at("kv").get<std::vector<double>>());
    for (const Json& one : json.at("linears")) scores_.at(one.at(0).get<size_t>()).at(one.at(1).get<size_t>()) = one.at(2).get<double>();
  } catch (const std::exception&) {
    throw data_error("not what a run kept of its scores", where, "start over with --restart");
  }
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

ScoringResult score_candidates(const ScoringInput& input, const parallel::Mesh& mesh,
                               const std::function<void(bool backward, const SweepProgress&)>& on_layer) {
  ScoringResult result;
  for (const auto& row : input.rows) result.tokens += std::max<int64_t>(0, static_cast<int64_t>(row.size()) - 1);
  mesh.world().together([&] {
    if (result.tokens > 0) return;
    throw user_error("no token of the calibration rows predicts another: every gradient is zero", "calibration.data",
                     "give rows of two tokens at least");
  });
  Progress progress(mesh.world(), input.progress);
  const auto layers = static_cast<int64_t>(input.model.spec.layers.size());
  SweepOptions options;
  options.end_layer = layers - progress.layers();
  if (!progress.is_new()) options.gradients = progress.states(progress.layers());
  options.operand = options.hidden = input.fp32 ? DType::kF32 : DType::kBF16;
  options.host_memory = input.host_memory;
  options.scratch = input.scratch;
  options.keep_inputs = true;
  Sweep sweep(input.model.spec, *input.model.reader, mesh, TokenRows::dealt(input.rows, mesh.shape().data, mesh.data_rank()), options);
  EvaluateSettings settings;
  settings.fp32 = input.fp32;
  std::vector<std::unique_ptr<EvaluationClient>> candidates;
  mesh.world().together([&] {
    for (const SourceModel* candidate : input.candidates) candidates.push_back(std::make_unique<EvaluationClient>(*candidate, settings));
  });
  // On the way back a layer is there once more by columns, and in every candidate.
  PlainClient plain(2.0 + static_cast<double>(candidates.size()));
  Scorer scorer(input, mesh, candidates, sweep);
  mesh.world().together([&] {
    for (const std::string& part : progress.parts()) scorer.take(part, input.progress);
  });
  auto begin = std::chrono::steady_clock::now();
  if (!progress.is_done()) sweep.run(plain, [&](const SweepProgress& swept) { on_layer(false, swept); });
  result.forward_seconds = seconds_since(begin);
  begin = std::chrono::steady_clock::now();
  std::vector<BackwardSource> sources{{input.model.reader.get(), &plain}};
  for (size_t c = 0; c < candidates.size(); ++c) sources.push_back({input.candidates[c]->reader.get(), candidates[c].get()});
  const auto keep_layer = [&](const SweepProgress& swept) {
    on_layer(true, swept);
    const bool is_last = swept.layers_done == swept.layers;
    if (!is_last) sweep.save_gradients(progress.states(swept.layers_done));
    progress.advance(swept.layers_done, is_last, scorer.layer_scores());
  };
  if (!progress.is_done()) sweep.run_backward(sources, scorer, keep_layer);
  result.backward_seconds = seconds_since(begin);
  result.scores = scorer.scores();
  result.kv_scores = scorer.kv_scores();
  for (auto* scores : {&result.scores, &result.kv_scores})
    for (auto& group : *scores)
      for (double& score : group) score /= 2.0 * static_cast<double>(result.tokens);
  return result;
}

}  // namespace ptq::runner
