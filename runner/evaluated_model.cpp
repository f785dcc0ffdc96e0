#include "runner/evaluated_model.h"

#include <algorithm>

#include "kernels/ops.h"

namespace ptq::runner {

namespace {

SweepOptions sweep_options(const EvaluateSettings& settings) {
  SweepOptions options;
  options.operand = settings.fp32 ? DType::kF32 : DType::kBF16;
  options.hidden = DType::kF32;  // evaluation judges: it keeps what rounding between layers would lose
  options.host_memory = settings.host_memory;
  options.scratch = settings.scratch;
  options.micro_batch = 512;  // fixed, so that model and reference cut their rows alike
  return options;
}

}  // namespace

EvaluationClient::EvaluationClient(const SourceModel& source, const EvaluateSettings& settings) : source_(source), settings_(settings) {
  const StoredEncodings stored(source);
  const auto add = [&](const layers::LinearSpec& linear) {
    const recipes::Encoding encoding = stored.of(linear);
    encodings_[linear.module] = encoding;
    if (!encoding.is_quantized()) return;
    quantized_ = true;
    scales_[linear.module] = stored.scales(encoding, linear);
  };
  kv_formats_ = stored_kv_formats(source.config, source.spec);
  for (const auto& layer : source.spec.layers) {
    for (const auto& linear : layer.linears) add(linear);
    if (!layer.attention()) continue;
    const std::string& module = layer.attention()->module;
    if (const auto format = kv_formats_.at(module); format != recipes::KvFormat::kNone)
      kv_scales_[module] = read_kv_scales(*source.reader, stored.dialect(), format, *layer.attention());
  }
  if (source.spec.tied)
    encodings_[source.spec.lm_head.module] = {};
  else
    add(source.spec.lm_head);
}

std::vector<layers::TensorSpec> EvaluationClient::tensors(const layers::LayerSpec& layer) const {
  std::vector<layers::TensorSpec> specs;
  for (const auto& spec : layer.tensors) {
    const auto* linear = spec.is_weight() ? &layer.linears[static_cast<size_t>(spec.linear)] : nullptr;
    if (!linear || !encodings_.at(linear->module).is_quantized()) {
      specs.push_back(spec);
      continue;
    }
    // Their rows are not those of the weight: without a split, as one tensor rank sees them.
    for (const auto& part : recipes::encoded_tensors(encodings_.at(linear->module), *linear))
      if (part.kind == recipes::EncodedTensor::Kind::kRows)
        specs.push_back({part.tensor.name, part.tensor.shape, layers::Split::kWhole, spec.linear, spec.expert});
  }
  return specs;
}

layers::LayerWeights EvaluationClient::weights(const LayerTensors& tensors) const {
  layers::LayerWeights weights;
  weights.linears.resize(tensors.layer->linears.size());
  std::vector<std::vector<Tensor>> encoded(tensors.layer->linears.size());
  for (const auto& spec : tensors.specs) {
    const Tensor& slice = tensors.slices.at(spec.name);
    if (spec.linear < 0) {
      weights.vectors[spec.name] = slice;
      continue;
    }
    const auto i = static_cast<size_t>(spec.linear);
    const layers::LinearSpec& linear = tensors.layer->linears[i];
    if (spec.name == linear.tensor(".bias"))
      weights.linears[i].bias = slice;
    else if (!encodings_.at(linear.module).is_quantized())
      weights.linears[i].weight = slice;
    else
      encoded[i].push_back(slice);
  }
  for (size_t i = 0; i < encoded.size(); ++i) {
    if (encoded[i].empty()) continue;
    const layers::LinearSpec& linear = tensors.layer->linears[i];
    weights.linears[i].weight = recipes::decode_rows(encodings_.at(linear.module), linear, encoded[i], scales_.at(linear.module));
  }
  return weights;
}

layers::ExpertWeights EvaluationClient::expert_weights(const ExpertChunk& chunk, int expert) const {
  const layers::LayerSpec& layer = *chunk.layer;
  const layers::ExpertLinears& linears = layer.moe()->experts[static_cast<size_t>(expert)];
  layers::ExpertWeights weights;
  std::map<int, std::vector<Tensor>> encoded;
  const auto& specs = chunk.specs_of(expert);
  for (size_t i = 0; i < specs.size(); ++i) {
    const Tensor& stored = chunk.of(expert)[i];
    const layers::LinearSpec& linear = layer.linears[static_cast<size_t>(specs[i].linear)];
    if (specs[i].name != linear.tensor(".bias") && encodings_.at(linear.module).is_quantized())
      encoded[specs[i].linear].push_back(stored);
    else
      place_expert_tensor(specs[i], stored, weights.of(linears, specs[i].linear));
  }
  for (const auto& [index, parts] : encoded) {
    const layers::LinearSpec& linear = layer.linears[static_cast<size_t>(index)];
    const Tensor decoded = recipes::decode_rows(encodings_.at(linear.module), linear, parts, scales_.at(linear.module));
    weights.of(linears, index).weight = decoded.reshaped({linear.out, linear.in});
  }
  return weights;
}

bool EvaluationClient::changes_input(const std::string& module) const {
  const recipes::Encoding& encoding = encodings_.at(module);
  return encoding.is_quantized() && (encoding.pre_quant_scale || (recipes::quantizes_activations(encoding) && !settings_.weights_only));
}

void EvaluationClient::change_input(const std::string& module, Tensor& x) const {
  if (settings_.weights_only)  // the weight was divided by it
    recipes::smooth_input(encodings_.at(module), scales_.at(module), x);
  else
    recipes::fake_quantize_input(encodings_.at(module), scales_.at(module), x);
}

Tensor EvaluationClient::quantized_input(const layers::LayerSpec& layer, int linear, const Tensor& x) {
  const std::string& module = layer.linears[static_cast<size_t>(linear)].module;
  if (!changes_input(module)) return x;
  const int64_t bytes = x.numel() * dtype_bytes(DType::kF32);
  if (!quantized_copy_.defined() || quantized_copy_.bytes() < bytes) quantized_copy_ = Tensor::empty({bytes}, DType::kU8);
  Tensor copy = quantized_copy_.as(x.shape(), DType::kF32);
  kernels::convert(x, copy);
  change_input(module, copy);
  return copy;
}

void EvaluationClient::key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch&) {
  const std::string& module = layer.attention()->module;
  const recipes::KvFormat format = kv_formats_.at(module);
  if (format == recipes::KvFormat::kNone || settings_.weights_only) return;
  const recipes::KvScales& scales = kv_scales_.at(module);
  recipes::fake_quantize_kv(format, scales.key, scales.key_bias, k);
  recipes::fake_quantize_kv(format, scales.value, scales.value_bias, v);
}

SourceModel EvaluatedModel::open(const std::string& folder, const std::string& config) {
  SourceModel source = open_source(folder, config);
  if (is_plain(source)) check_tensors(source);
  const EvaluateSettings settings;
  const EvaluationClient reads_every_scale(source, settings);
  return source;
}

EvaluatedModel::EvaluatedModel(SourceModel source, const parallel::Mesh& mesh, TokenRows rows, const EvaluateSettings& settings)
    : source_(std::move(source)),
      settings_(settings),
      mesh_(mesh),
      client_(source_, settings_),
      sweep_(source_.spec, *source_.reader, mesh, std::move(rows), sweep_options(settings)) {
  sweep_.run(client_, [](const SweepProgress&) {});
}

void EvaluatedModel::load_head() {
  const layers::ModelSpec& model = source_.spec;
  const std::string& norm = model.final_norm.module;
  const recipes::Encoding& encoding = client_.encoding(model.lm_head.module);
  std::vector<std::string> names{model.head_weight()};
  if (encoding.is_quantized()) {
    names.clear();
    for (const auto& part : recipes::encoded_tensors(encoding, model.lm_head))
      if (part.kind == recipes::EncodedTensor::Kind::kRows) names.push_back(part.tensor.name);
  }
  std::vector<Tensor> whole(names.size());
  mesh_.world().together([&] {
    for (const char* suffix : {".weight", ".bias"})
      if (source_.reader->find(norm + suffix)) vectors_[norm + suffix] = source_.reader->read(norm + suffix);
    for (size_t i = 0; i < names.size(); ++i) {
      const checkpoint::TensorEntry& entry = source_.reader->at(names[i]);
      whole[i] = Tensor::empty(entry.shape, entry.dtype);
      const parallel::Range share = world_share(entry.shape[0], mesh_);
      if (share.size() > 0) source_.reader->read_rows(entry, share.begin, share.end, whole[i].rows(share.begin, share.end).raw());
    }
  });
  for (const Tensor& tensor : whole) {
    std::vector<int64_t> bytes;
    for (int r = 0; r < mesh_.world().size(); ++r)
      bytes.push_back(parallel::even_share(tensor.dim(0), mesh_.world().size(), r).size() * tensor.row_bytes());
    const parallel::Range share = world_share(tensor.dim(0), mesh_);
    mesh_.world().all_gather(tensor.raw() + share.begin * tensor.row_bytes(), bytes, tensor.raw());
  }
  head_ = encoding.is_quantized() ? recipes::decode_rows(encoding, model.lm_head, whole, client_.scales(model.lm_head.module)) : whole[0];
}

Tensor EvaluatedModel::final_states(int64_t m) {
  const Tensor hidden = sweep_.final_hidden(m);
  const std::string& head = source_.spec.lm_head.module;
  const bool changes = client_.changes_input(head);
  const DType operand = settings_.fp32 || changes ? DType::kF32 : DType::kBF16;
  Tensor states = sweep_.workspace().get("norm", hidden.shape(), operand);
  layers::apply_norm(source_.spec.final_norm, vectors_, hidden, states);
  if (changes) client_.change_input(head, states);
  return states;
}

void EvaluatedModel::logits(const Tensor& states, int64_t begin, int64_t end, Tensor& out) {
  kernels::matmul(states.rows(begin, end), head_, Tensor(), out);
}

}  // namespace ptq::runner
