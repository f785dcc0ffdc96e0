// Small tensors that smoothing changed: norms, the routers that read them, biases of rows that took factors.

#include <cmath>

#include "kernels/ops.h"
#include "recipes/decisions.h"
#include "recipes/smoothing.h"
#include "runner/verify_judge.h"

namespace ptq::runner {

namespace {

using checkpoint::Reader;

bool is_quantized(const std::vector<StoredLinear>& layer, int linear) { return layer[static_cast<size_t>(linear)].encoding.is_quantized(); }

/// Are all linears quantized that read what the group's factors change, one of them to a format that is searched? Only then can they have
/// taken any.
bool can_fold(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, const layers::SmoothingGroup& group) {
  std::vector<int> readers = group.linears;
  for (size_t i = 0; group.feeds_experts && i < layer.linears.size(); ++i)
    if (layer.linears[i].is_routed() && layer.linears[i].feeds_down) readers.push_back(static_cast<int>(i));
  bool is_searched = false;
  for (const int linear : readers) {
    if (!is_quantized(stored, linear)) return false;
    is_searched = is_searched || takes_factors(stored[static_cast<size_t>(linear)].encoding.format);
  }
  if (!is_searched) return false;
  return group.fold.kind == layers::Fold::Kind::kNorm ||
         (group.fold.kind == layers::Fold::Kind::kRows && is_quantized(stored, group.fold.linear));
}

std::vector<float> read_floats(const Reader& reader, const std::string& name) {
  const Tensor values = kernels::converted(reader.read(name), DType::kF32);
  return {values.data<float>(), values.data<float>() + values.numel()};
}

bool same(const Reader& exported, const Reader& source, const std::string& name) {
  const Tensor a = exported.read(name), b = source.read(name);
  return a.dtype() == b.dtype() && a.bytes() == b.bytes() && std::equal(a.raw(), a.raw() + a.bytes(), b.raw());
}

/// A factor is positive: no value changes its sign or becomes zero.
void check_signs(const Reader& exported, const Reader& source, const std::string& name, float one, Judge& judge) {
  const std::vector<float> now = read_floats(exported, name), before = read_floats(source, name);
  bool fits = now.size() == before.size();
  for (size_t c = 0; fits && c < now.size(); ++c) {
    const float a = now[c] + one, b = before[c] + one;
    fits = std::isfinite(a) && (a > 0) == (b > 0) && (a < 0) == (b < 0);
  }
  judge.claim(fits, name + " is not the source's by positive factors");
}

}  // namespace

std::vector<std::string> folded_names(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored) {
  std::vector<std::string> names;
  for (const auto& group : layers::smoothing_groups(layer)) {
    if (!can_fold(layer, stored, group)) continue;
    if (group.fold.kind == layers::Fold::Kind::kRows) {
      const auto& maker = layer.linears[static_cast<size_t>(group.fold.linear)];
      if (maker.has_bias) names.push_back(maker.tensor(".bias"));
      continue;
    }
    names.push_back(group.fold.norm.module + ".weight");
    if (group.fold.norm.kind == layers::NormSpec::Kind::kLayerNorm1p) names.push_back(group.fold.norm.module + ".bias");
    if (group.feeds_experts) names.push_back(layer.moe()->router.module + ".weight");
  }
  return names;
}

void check_stored_factors(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, Judge& judge) {
  for (const int linear : recipes::output_linears(layer)) {
    const StoredLinear& one = stored[static_cast<size_t>(linear)];
    if (recipes::is_modelopt_int4(one.encoding) && !one.linear->is_stacked())
      judge.claim(one.encoding.pre_quant_scale, one.linear->module + " has no pre_quant_scale, which TensorRT-LLM asks for");
  }
}

void check_folds(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, const Reader& exported, const Reader& source,
                 Judge& judge) {
  for (const std::string& name : folded_names(layer, stored)) {
    const bool there = exported.find(name) && source.find(name);
    judge.claim(there, name + " is missing");
    if (!there) return;
  }
  for (const auto& group : layers::smoothing_groups(layer)) {
    if (!can_fold(layer, stored, group)) continue;
    if (group.fold.kind == layers::Fold::Kind::kRows) {
      const auto& maker = layer.linears[static_cast<size_t>(group.fold.linear)];
      if (maker.has_bias) check_signs(exported, source, maker.tensor(".bias"), 0, judge);
      continue;
    }
    const bool around_one = group.fold.norm.kind == layers::NormSpec::Kind::kLayerNorm1p;
    const std::string norm = group.fold.norm.module + ".weight";
    check_signs(exported, source, norm, around_one ? 1.0f : 0.0f, judge);
    if (around_one) check_signs(exported, source, group.fold.norm.module + ".bias", 0, judge);
    if (!group.feeds_experts) continue;
    // The router reads the norm's output too: its columns must have taken exactly what the norm gave up.
    const std::string router = layer.moe()->router.module + ".weight";
    if (same(exported, source, norm)) {
      judge.claim(same(exported, source, router), router + " differs from the source though its input does not");
      continue;
    }
    const Tensor original = source.read(router);
    Tensor expected = kernels::converted(original, DType::kF32);
    kernels::scale_columns(expected, recipes::norm_ratio(source.read(norm), exported.read(norm), around_one));
    const Tensor rounded = kernels::converted(expected, original.dtype()), now = exported.read(router);
    judge.claim(now.bytes() == rounded.bytes() && std::equal(now.raw(), now.raw() + now.bytes(), rounded.raw()),
                router + " did not take the factors that " + norm + " gave up");
  }
}

}  // namespace ptq::runner
