#include "runner/export_plan.h"

#include <algorithm>
#include <set>

#include "recipes/exclusions.h"

namespace ptq::runner {

ExportPlan plan_export(const SourceModel& source, const recipes::Recipe& recipe) {
  const layers::ModelSpec& model = source.spec;
  ExportPlan plan;
  plan.decisions = recipes::decide_formats(model, recipe);

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
    if (decision.format == recipes::Format::kNone) {
      add_source(weight);
    } else {
      done.insert(weight);
      for (auto& part : recipes::encoded_tensors(decision.format, linear)) tensors.push_back(std::move(part.tensor));
    }
    if (!in_decoder || decision.is_ignored) return;
    const auto count = static_cast<double>(linear.out * linear.in * std::max<int64_t>(linear.stack, 1));
    weights += count;
    bits += count * (decision.format == recipes::Format::kNone ? 8.0 * static_cast<double>(dtype_bytes(source.reader->at(weight).dtype))
                                                               : recipes::info(decision.format).bits);
  };

  const bool head_quantized = plan.decisions.at(model.lm_head.module).format != recipes::Format::kNone;
  add_source(model.embedding);
  plan.copied.push_back(model.embedding);
  for (const auto& layer : model.layers) {
    for (const auto& tensor : layer.tensors) {
      if (tensor.is_weight())
        add_linear(layer.linears[static_cast<size_t>(tensor.linear)], true);
      else
        add_source(tensor.name);
    }
    if (recipe.kv_cache != "none" && layer.attention()) {
      tensors.push_back({layer.attention()->module + ".k_proj.k_scale", DType::kF32, {}});
      tensors.push_back({layer.attention()->module + ".v_proj.v_scale", DType::kF32, {}});
    }
  }
  if (head_quantized) add_linear(model.lm_head, false);
  // A tied checkpoint may carry its head as well: the alias is dropped, as servers expect.
  if (model.tied) done.insert(model.lm_head.tensor(".weight"));
  std::vector<checkpoint::OutputTensor> outside;
  for (const auto& [name, entry] : source.reader->tensors()) {
    if (done.count(name)) continue;
    add_source(name);
    plan.copied.push_back(name);
    if (name != model.head_weight()) outside.push_back(tensors.back());
  }
  plan.metadata = recipes::describe_export(model, plan.decisions, recipe.kv_cache, recipes::matrix_modules(outside));
  recipes::check_engine(recipe, plan.metadata);
  plan.bits_per_weight = weights > 0 ? bits / weights : 0;
  plan.layout = checkpoint::OutputLayout::plan(std::move(tensors), recipe.max_shard_size);
  return plan;
}

}  // namespace ptq::runner
