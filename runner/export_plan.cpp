#include "runner/export_plan.h"

#include <algorithm>
#include <set>

namespace ptq::runner {

ExportPlan plan_export(const SourceModel& source, const recipes::Recipe& recipe) {
  const layers::ModelSpec& model = source.spec;
  ExportPlan plan;
  plan.decisions = recipes::decide_formats(model, recipe);
  plan.metadata = recipes::describe_export(model, plan.decisions, recipe.kv_cache);
  recipes::check_engine(recipe, plan.metadata);

  std::vector<checkpoint::OutputTensor> tensors;
  std::set<std::string> done;
  double bits = 0, weights = 0;
  const auto add_source = [&](const std::string& name) {
    const checkpoint::TensorEntry& entry = source.reader->at(name);
    tensors.push_back({entry.name, entry.dtype, entry.shape});
    done.insert(name);
  };
  const auto add_linear = [&](const layers::LinearSpec& linear, bool in_decoder) {
    const recipes::Format format = plan.decisions.at(linear.module).format;
    if (format == recipes::Format::kNone) {
      add_source(linear.module + ".weight");
    } else {
      done.insert(linear.module + ".weight");
      for (const auto& part : recipes::encoded_tensors(format, linear)) tensors.push_back(recipes::output_tensor(part, linear));
    }
    if (!in_decoder ||
        std::any_of(recipe.ignore.begin(), recipe.ignore.end(), [&](const auto& p) { return recipes::matches(p, linear.module); }))
      return;
    const auto count = static_cast<double>(linear.out * linear.in);
    weights += count;
    bits += count * (format == recipes::Format::kNone
                         ? 8.0 * static_cast<double>(dtype_bytes(source.reader->at(linear.module + ".weight").dtype))
                         : recipes::info(format).bits);
  };

  std::vector<std::string> outside;
  const bool head_quantized = plan.decisions.at(model.lm_head.module).format != recipes::Format::kNone;
  add_source(model.embedding);
  outside.push_back(model.embedding);
  for (const auto& layer : model.layers) {
    for (const auto& tensor : layer.tensors) {
      const bool is_weight = tensor.linear >= 0 && tensor.shape.size() == 2;
      if (is_weight)
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
  if (model.tied) done.insert(model.lm_head.module + ".weight");
  for (const auto& [name, entry] : source.reader->tensors())
    if (!done.count(name)) {
      add_source(name);
      outside.push_back(name);
    }
  plan.copied = std::move(outside);
  plan.bits_per_weight = weights > 0 ? bits / weights : 0;
  plan.layout = checkpoint::OutputLayout::plan(std::move(tensors), recipe.max_shard_size);
  return plan;
}

}  // namespace ptq::runner
