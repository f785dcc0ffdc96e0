#include "runner/export_plan.h"

#include <algorithm>
#include <set>

#include "recipes/engine_support.h"
#include "recipes/exclusions.h"
#include "recipes/kv_cache.h"

namespace ptq::runner {

ExportPlan plan_export(const SourceModel& source, const recipes::Recipe& recipe) {
  return plan_export(source, recipe, recipes::decide_formats(source.spec, recipe),
                     recipes::uniform_kv_formats(source.spec, recipes::kv_format(recipe.kv_cache)));
}

ExportPlan plan_export(const SourceModel& source, const recipes::Recipe& recipe, std::map<std::string, recipes::Decision> decisions,
                       const recipes::KvFormats& kv_cache) {
  const layers::ModelSpec& model = source.spec;
  ExportPlan plan;
  plan.decisions = std::move(decisions);
  recipes::check_kv_cache(model, recipe);
  const recipes::Dialect dialect = recipes::find_dialect(recipe.dialect, recipe.where("output.dialect"));

  std::vector<checkpoint::OutputTensor> tensors;
  std::set<std::string> done;
  double bits = 0, weights = 0;
  const auto add_source = [&](const std::string& name) {
    const checkpoint::TensorEntry& entry = source.reader->at(name);
    tensors.push_back({entry.name, entry.dtype, entry.shape});
    done.insert(name);
  };
  const auto add_linear = [&](const layers::LinearSpec& linear, bool in_decoder) {
    const recipes::Decision& decision = plan.decisions.at(linear.module);
    const std::string weight = linear.tensor(".weight");
    int64_t stored_bytes = 0;
    if (!decision.encoding.is_quantized()) {
      add_source(weight);
      stored_bytes = source.reader->at(weight).bytes;
    } else {
      done.insert(weight);
      for (auto& part : recipes::encoded_tensors(decision.encoding, linear)) {
        if (part.kind == recipes::EncodedTensor::Kind::kRows)
          stored_bytes += element_count(part.tensor.shape) * dtype_bytes(part.tensor.dtype);
        tensors.push_back(std::move(part.tensor));
      }
    }
    if (!in_decoder || decision.is_ignored) return;
    weights += static_cast<double>(linear.out * linear.in * std::max<int64_t>(linear.stack, 1));
    bits += 8.0 * static_cast<double>(stored_bytes);
  };

  const bool head_quantized = plan.decisions.at(model.lm_head.module).encoding.is_quantized();
  add_source(model.embedding);
  plan.copied.push_back(model.embedding);
  for (const auto& layer : model.layers) {
    for (const auto& tensor : layer.tensors) {
      if (tensor.is_weight())
        add_linear(layer.linears[static_cast<size_t>(tensor.linear)], true);
      else
        add_source(tensor.name);
    }
    if (layer.attention())
      for (auto& tensor : recipes::kv_tensors(dialect, kv_cache.at(layer.attention()->module), *layer.attention()))
        tensors.push_back(std::move(tensor));
  }
  if (head_quantized) add_linear(model.lm_head, false);
  // A tied checkpoint may carry its head as well: the alias is dropped, as servers expect.
  if (model.tied) done.insert(model.lm_head.tensor(".weight"));
  std::vector<checkpoint::OutputTensor> outside;
  for (const auto& [name, entry] : source.reader->tensors()) {
    if (done.count(name)) continue;
    add_source(name);
    plan.copied.push_back(name);
    // What the publisher left in FP8 blocks is quantized as DeepSeek's words say.
    const std::string weight = name.ends_with("_scale_inv") ? name.substr(0, name.size() - std::string("_scale_inv").size()) : name;
    const bool is_in_blocks = dialect == recipes::Dialect::kDeepseekFp8 && source.reader->find(weight + "_scale_inv");
    if (name != model.head_weight() && !is_in_blocks) outside.push_back(tensors.back());
  }
  plan.metadata = recipes::describe_export(model, plan.decisions, kv_cache, dialect, recipes::matrix_modules(outside));
  recipes::check_engine(recipe, plan.metadata);
  plan.bits_per_weight = weights > 0 ? bits / weights : 0;
  plan.layout = checkpoint::OutputLayout::plan(std::move(tensors), recipe.max_shard_size);
  return plan;
}

}  // namespace ptq::runner
