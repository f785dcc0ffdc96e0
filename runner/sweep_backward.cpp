// The streaming backward pass: from the last layer to the first, each from the input that the forward pass kept.

#include <algorithm>
#include <chrono>

#include "kernels/ops.h"
#include "runner/kept_error.h"
#include "runner/sweep.h"

namespace ptq::runner {

using parallel::Range;

class Sweep::Backward {
 public:
  Backward(Sweep& sweep, const std::vector<BackwardSource>& sources, BackwardClient& client)
      : sweep_(sweep),
        mesh_(sweep.mesh_),
        sources_(sources),
        client_(client),
        gradients_(sweep.gradients_.emplace(sweep.open_store(sweep.spill_))) {
    for (const BackwardSource& source : sources)
      loaders_.push_back(std::make_unique<WeightLoader>(*source.reader, load_units(source), sweep.ahead_bytes_));
  }

  void run(const std::function<void(const SweepProgress&)>& on_layer);

 private:
  /// The layers in the order they are needed.
  template <class Visit>
  void for_layers(const Visit& visit) const {
    for (int64_t l = sweep_.end_layer() - 1; l >= 0; --l) visit(sweep_.model_.layers[static_cast<size_t>(l)]);
  }
  std::vector<LoadUnit> load_units(const BackwardSource& source) const;
  std::vector<Range> chunks(const layers::LayerSpec& layer) const {
    return cut_experts(static_cast<int64_t>(layer.moe()->experts.size()), sweep_.plan_.experts, mesh_);
  }
  /// Gradients by the final hidden states.
  void start();
  void run_layer(const layers::LayerSpec& layer);
  /// One micro-batch back through the layer. `group` with rows from `at` on: what its tokens got back from routed experts.
  void take_back(const layers::LayerSpec& layer, int64_t m, const layers::GradientGroup* group, int64_t at);
  /// The tokens of micro-batches [first, last) with what their experts read, and the gradient of what they made.
  layers::GradientGroup gather_group(const layers::LayerSpec& layer, int64_t first, int64_t last);
  /// The next chunk of every source. Collective over the replicas.
  std::vector<ExpertChunk> take_chunk(const layers::LayerSpec& layer, Range experts);
  void run_chunk(const layers::LayerSpec& layer, const std::vector<ExpertChunk>& chunk, layers::GradientGroup& group);

  Tensor share_buffer(int64_t m, const std::string& name) const {
    return sweep_.workspace_.get(name, {sweep_.token_share(m).size(), sweep_.model_.hidden}, sweep_.options_.hidden);
  }
  Tensor hidden_of(const layers::LayerSpec& layer, int64_t m) const {
    return sweep_.gather_tokens(m, sweep_.inputs_[static_cast<size_t>(layer.index)].load(m, share_buffer(m, "share")));
  }

  Sweep& sweep_;
  const parallel::Mesh& mesh_;
  const std::vector<BackwardSource>& sources_;
  BackwardClient& client_;
  HiddenStore& gradients_;
  std::vector<std::unique_ptr<WeightLoader>> loaders_;
  layers::LayerWeights weights_;  ///< of the layer, by sources[0]
  layers::LayerColumns columns_;
  layers::LayerHooks none_;
  layers::BackwardContext context_;
  std::optional<Error> error_;  ///< waits for the layer's end
};

std::vector<LoadUnit> Sweep::Backward::load_units(const BackwardSource& source) const {
  std::vector<LoadUnit> units;
  for_layers([&](const layers::LayerSpec& layer) {
    units.push_back(layer_unit(*source.client, layer, *source.reader, mesh_));
    if (!layer.moe()) return;
    const auto specs = group_by_expert(*layer.moe(), source.client->tensors(layer));
    for (const Range& experts : chunks(layer)) units.push_back(chunk_unit(place_chunk(layer, experts, specs, mesh_), *source.reader));
  });
  return units;
}

void Sweep::Backward::take_back(const layers::LayerSpec& layer, int64_t m, const layers::GradientGroup* group, int64_t at) {
  const Range share = sweep_.token_share(m);
  layers::RoutedGradient routed;
  if (group) {
    const auto whole = [&](const Tensor& rows, const char* name) { return sweep_.gather_rows(m, rows.rows(at, at + share.size()), name); };
    routed = {whole(group->x_gradient, "routed_x"), whole(group->weight_gradient, "routed_dw"), whole(group->tokens.experts, "routed_e"),
              whole(group->tokens.weights, "routed_w")};
  }
  const Tensor stored = sweep_.gather_rows(m, gradients_.load(m, share_buffer(m, "sweep_gradient_share")), "sweep_gradient_tokens");
  Tensor gradient = sweep_.workspace_.get("sweep_gradient", stored.shape(), DType::kF32);
  kernels::convert(stored, gradient);
  layers::backward_layer(layer, weights_, sweep_.batch(m), context_, hidden_of(layer, m), group ? &routed : nullptr, gradient);
  Tensor rounded = share_buffer(m, "sweep_gradient_share");
  kernels::convert(gradient.rows(share.begin, share.end), rounded);
  gradients_.store(m, rounded);
}

layers::GradientGroup Sweep::Backward::gather_group(const layers::LayerSpec& layer, int64_t first, int64_t last) {
  const int64_t hidden = sweep_.model_.hidden, top_k = layer.moe()->router.top_k;
  int64_t tokens = 0, at = 0;
  for (int64_t m = first; m < last; ++m) tokens += sweep_.token_share(m).size();
  layers::Workspace& workspace = sweep_.workspace_;
  layers::GradientGroup group;
  group.tokens.x = workspace.get("group_x", {tokens, hidden}, sweep_.options_.operand);
  group.gradient = workspace.get("group_gradient", {tokens, hidden}, DType::kF32);
  group.x_gradient = workspace.get("group_x_gradient", {tokens, hidden}, DType::kF32);
  group.weight_gradient = workspace.get("group_weight_gradient", {tokens, top_k}, DType::kF32);
  std::fill_n(group.x_gradient.data<float>(), group.x_gradient.numel(), 0.0f);
  std::fill_n(group.weight_gradient.data<float>(), group.weight_gradient.numel(), 0.0f);
  for (int64_t m = first; m < last; ++m) {
    const Range share = sweep_.token_share(m);
    Tensor states = hidden_of(layer, m);
    const Tensor x = layers::forward_layer(layer, weights_, sweep_.batch(m), context_.forward, states).rows(share.begin, share.end);
    std::copy_n(x.raw(), x.bytes(), group.tokens.x.rows(at, at + share.size()).raw());
    Tensor gradient = group.gradient.rows(at, at + share.size());
    kernels::convert(gradients_.load(m, share_buffer(m, "sweep_gradient_share")), gradient);
    sweep_.add_positions(m, group.tokens.positions);
    at += share.size();
  }
  layers::route_tokens(*layer.moe(), weights_.vectors, workspace, group.tokens);
  return group;
}

std::vector<ExpertChunk> Sweep::Backward::take_chunk(const layers::LayerSpec& layer, Range experts) {
  std::vector<ExpertChunk> chunks;
  for (size_t s = 0; s < sources_.size(); ++s) {
    const BackwardSource& source = sources_[s];
    chunks.push_back(place_chunk(layer, experts, group_by_expert(*layer.moe(), source.client->tensors(layer)), mesh_));
    keep_error(error_, [&] { fill_chunk(chunks.back(), loaders_[s]->take()); });
    chunks.back().broken = error_.has_value();
    gather_chunk(chunks.back(), *source.reader, mesh_);
  }
  for (ExpertChunk& chunk : chunks) chunk.broken = error_.has_value();
  return chunks;
}

void Sweep::Backward::run_chunk(const layers::LayerSpec& layer, const std::vector<ExpertChunk>& chunk, layers::GradientGroup& group) {
  const ExpertChunk& own = chunk.front();
  std::vector<const ExpertChunk*> by_source;
  for (const ExpertChunk& one : chunk) by_source.push_back(&one);
  if (!own.broken) client_.chunk_begins(by_source);
  const layers::ExpertContext context{sweep_.options_.operand, &none_, &sweep_.workspace_, &mesh_.experts(), kExchangeTokens};
  const layers::ExpertChunkView view{own.experts, [&](int e) { return sources_.front().client->expert_weights(own, e); }, own.broken};
  layers::backward_experts(layer, view, context, client_.hooks(), group);
}

void Sweep::Backward::run_layer(const layers::LayerSpec& layer) {
  std::vector<layers::LayerWeights> weights;
  std::vector<LayerTensors> tensors;
  mesh_.world().together([&] {
    for (size_t s = 0; s < sources_.size(); ++s)
      tensors.push_back(place_layer(*sources_[s].client, layer, *sources_[s].reader, mesh_, loaders_[s]->take()));
  });
  for (size_t s = 0; s < sources_.size(); ++s) {
    assemble_layer(tensors[s], *sources_[s].reader, mesh_, false);
    weights.push_back(sources_[s].client->weights(tensors[s]));
  }
  tensors.clear();
  weights_ = weights.front();
  columns_ = layers::weight_columns(layer, weights_, mesh_.tensor());
  const layers::ForwardContext forward{sweep_.options_.operand, &sweep_.rope_, sweep_.model_.rope.rotary_dim,
                                       &mesh_.tensor(),         &none_,        &sweep_.workspace_};
  context_ = {forward, &columns_, &client_.hooks()};
  client_.layer_begins(layer, weights);
  weights.clear();
  if (!layer.moe()) {
    for (int64_t m = 0; m < sweep_.micro_batches(); ++m) take_back(layer, m, nullptr, 0);
    return;
  }
  const std::vector<Range> all = chunks(layer);
  std::vector<ExpertChunk> resident;
  for (int64_t g = 0; g < sweep_.groups_; ++g) {
    const int64_t first = std::min(sweep_.micro_batches(), g * sweep_.plan_.group),
                  last = std::min(sweep_.micro_batches(), first + sweep_.plan_.group);
    layers::GradientGroup group = gather_group(layer, first, last);
    for (const Range& experts : all) {
      if (resident.empty() || all.size() > 1) resident = take_chunk(layer, experts);
      run_chunk(layer, resident, group);
    }
    int64_t at = 0;
    for (int64_t m = first; m < last; ++m) {
      take_back(layer, m, &group, at);
      at += sweep_.token_share(m).size();
    }
  }
}

void Sweep::Backward::start() {
  if (!sweep_.options_.gradients.empty()) return mesh_.world().together([&] { sweep_.load(gradients_, sweep_.options_.gradients); });
  for (int64_t m = 0; m < sweep_.micro_batches(); ++m) {
    const Tensor stored = sweep_.store_->load(m, share_buffer(m, "share"));
    Tensor rounded = share_buffer(m, "sweep_gradient_share");
    if (stored.dim(0) > 0)
      kernels::convert(client_.loss_gradient(m, sweep_.token_share(m), kernels::converted(stored, DType::kF32)), rounded);
    gradients_.store(m, rounded);
  }
}

void Sweep::Backward::run(const std::function<void(const SweepProgress&)>& on_layer) {
  const auto begin = std::chrono::steady_clock::now();
  SweepProgress progress;
  progress.layers = static_cast<int64_t>(sweep_.model_.layers.size());
  progress.first_layer = progress.layers_done = progress.layers - sweep_.end_layer();
  for (const auto& row : sweep_.rows_.ids) progress.tokens += static_cast<int64_t>(row.size());
  start();
  for_layers([&](const layers::LayerSpec& layer) {
    run_layer(layer);
    mesh_.world().agree(error_);
    client_.layer_done(layer);
    progress.layers_done += 1;
    progress.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    progress.wait_seconds = 0;
    for (const auto& loader : loaders_) progress.wait_seconds += loader->waited_seconds();
    on_layer(progress);
  });
}

void Sweep::run_backward(const std::vector<BackwardSource>& sources, BackwardClient& client,
                         const std::function<void(const SweepProgress&)>& on_layer) {
  Backward(*this, sources, client).run(on_layer);
}

}  // namespace ptq::runner
