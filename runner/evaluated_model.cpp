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
  const checkpoint::Reader& reader = *source.reader;
  const auto add = [&](const layers::LinearSpec& linear) {
    const recipes::Format format = stored_format(reader, linear);
    formats_[linear.module] = format;
    if (format == recipes::Format::kNone) return;
    quantized_ = true;
    scales_[linear.module] = scales(linear, format);
  };
  for (const auto& layer : source.spec.layers) {
    for (const auto& linear : layer.linears) add(linear);
    if (!layer.attention()) continue;
    const std::string& module = layer.attention()->module;
    if (reader.find(module + ".k_proj.k_scale") && reader.find(module + ".v_proj.v_scale"))
      kv_scales_[module] = {read_scalar(reader, module + ".k_proj.k_scale"), read_scalar(reader, module + ".v_proj.v_scale")};
  }
  if (source.spec.tied)
    formats_[source.spec.lm_head.module] = recipes::Format::kNone;
  else
    add(source.spec.lm_head);
}

recipes::LinearScales EvaluationClient::scales(const layers::LinearSpec& linear, recipes::Format format) const {
  recipes::LinearScales scales;
  for (const auto& part : recipes::encoded_tensors(format, linear)) {
    if (!part.is_scalar) continue;
    (part.part == ".input_scale" ? scales.input_scale : scales.weight_scale) = read_scalar(*source_.reader, part.tensor.name);
  }
  return scales;
}

std::vector<layers::TensorSpec> EvaluationClient::tensors(const layers::LayerSpec& layer) const {
  std::vector<layers::TensorSpec> specs;
  for (const auto& spec : layer.tensors) {
    const auto* linear = spec.is_weight() ? &layer.linears[static_cast<size_t>(spec.linear)] : nullptr;
    const recipes::Format format = linear ? formats_.at(linear->module) : recipes::Format::kNone;
    if (format == recipes::Format::kNone) {
      specs.push_back(spec);
      continue;
    }
    for (const auto& part : recipes::encoded_tensors(format, *linear))
      if (!part.is_scalar) specs.push_back({part.tensor.name, part.tensor.shape, spec.split, spec.linear, spec.expert});
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
    if (!spec.is_weight())
      weights.linears[i].bias = slice;
    else if (formats_.at(tensors.layer->linears[i].module) == recipes::Format::kNone)
      weights.linears[i].weight = slice;
    else
      encoded[i].push_back(slice);
  }
  for (size_t i = 0; i < encoded.size(); ++i) {
    if (encoded[i].empty()) continue;
    const layers::LinearSpec& linear = tensors.layer->linears[i];
    weights.linears[i].weight = recipes::decode_rows(formats_.at(linear.module), linear, encoded[i], scales_.at(linear.module));
  }
  return weights;
}

layers::ExpertWeights EvaluationClient::expert_weights(const ExpertChunk& chunk, int expert) const {
  const layers::LayerSpec& layer = *chunk.layer;
  const layers::ExpertLinears& linears = layer.moe()->experts[static_cast<size_t>(expert)];
  const auto format_of = [&](int linear) { return formats_.at(layer.linears[static_cast<size_t>(linear)].module); };
  layers::ExpertWeights weights;
  std::map<int, std::vector<Tensor>> encoded;
  const auto& specs = chunk.specs_of(expert);
  for (size_t i = 0; i < specs.size(); ++i) {
    const Tensor& stored = chunk.of(expert)[i];
    if (specs[i].is_weight() && format_of(specs[i].linear) != recipes::Format::kNone)
      encoded[specs[i].linear].push_back(stored);
    else
      place_expert_tensor(specs[i], stored, weights.of(linears, specs[i].linear));
  }
  for (const auto& [index, parts] : encoded) {
    const layers::LinearSpec& linear = layer.linears[static_cast<size_t>(index)];
    const Tensor decoded = recipes::decode_rows(format_of(index), linear, parts, scales_.at(linear.module));
    weights.of(linears, index).weight = decoded.reshaped({linear.out, linear.in});
  }
  return weights;
}

Tensor EvaluationClient::quantized_input(const layers::LayerSpec& layer, int linear, const Tensor& x) {
  const std::string& module = layer.linears[static_cast<size_t>(linear)].module;
  const recipes::Format format = formats_.at(module);
  if (format == recipes::Format::kNone || settings_.weights_only || !recipes::info(format).quantizes_activations) return x;
  const int64_t bytes = x.numel() * dtype_bytes(DType::kF32);
  if (!quantized_copy_.defined() || quantized_copy_.bytes() < bytes) quantized_copy_ = Tensor::empty({bytes}, DType::kU8);
  Tensor copy = quantized_copy_.as(x.shape(), DType::kF32);
  kernels::convert(x, copy);
  recipes::fake_quantize_input(format, scales_.at(module), copy);
  return copy;
}

void EvaluationClient::key_value(const layers::LayerSpec& layer, Tensor& k, Tensor& v, const layers::Batch&) {
  const auto scale = kv_scales_.find(layer.attention()->module);
  if (scale == kv_scales_.end() || settings_.weights_only) return;
  kernels::fake_quantize_fp8(k, scale->second.first);
  kernels::fake_quantize_fp8(v, scale->second.second);
}

SourceModel EvaluatedModel::open(const std::string& folder) {
  SourceModel source = open_source(folder);
  if (is_plain(source)) check_tensors(source);
  const EvaluateSettings settings;
  const EvaluationClient reads_every_scale(source, settings);
  return source;
}

EvaluatedModel::EvaluatedModel(SourceModel source, const parallel::Mesh& mesh, const std::vector<std::vector<int32_t>>& rows,
                               int64_t first_row, const EvaluateSettings& settings)
    : source_(std::move(source)),
      settings_(settings),
      mesh_(mesh),
      client_(source_, settings_),
      sweep_(source_.spec, *source_.reader, mesh, rows, first_row, sweep_options(settings)) {
  sweep_.run(client_, [](const SweepProgress&) {});
}

void EvaluatedModel::load_head() {
  const layers::ModelSpec& model = source_.spec;
  const std::string& norm = model.final_norm.module;
  const recipes::Format format = client_.format(model.lm_head.module);
  std::vector<std::string> names{model.head_weight()};
  if (format != recipes::Format::kNone) {
    names.clear();
    for (const auto& part : recipes::encoded_tensors(format, model.lm_head))
      if (!part.is_scalar) names.push_back(part.tensor.name);
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
  head_ = format == recipes::Format::kNone ? whole[0]
                                           : recipes::decode_rows(format, model.lm_head, whole, client_.scales(model.lm_head, format));
}

Tensor EvaluatedModel::final_states(int64_t m) {
  const Tensor hidden = sweep_.final_hidden(m);
  const recipes::Format format = client_.format(source_.spec.lm_head.module);
  const bool quantize = format != recipes::Format::kNone && recipes::info(format).quantizes_activations && !settings_.weights_only;
  const DType operand = settings_.fp32 || quantize ? DType::kF32 : DType::kBF16;
  Tensor states = sweep_.workspace().get("norm", hidden.shape(), operand);
  layers::apply_norm(source_.spec.final_norm, vectors_, hidden, states);
  if (quantize) recipes::fake_quantize_input(format, client_.scales(source_.spec.lm_head, format), states);
  return states;
}

void EvaluatedModel::logits(const Tensor& states, int64_t begin, int64_t end, Tensor& out) {
  kernels::matmul(states.rows(begin, end), head_, Tensor(), out);
}

}  // namespace ptq::runner
