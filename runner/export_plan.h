#pragma once
// The output before it is computed: every tensor's name, dtype, shape and place, from the source, the decisions and the recipe alone.

#include <map>
#include <string>

#include "checkpoint/output_layout.h"
#include "recipes/decisions.h"
#include "recipes/export_metadata.h"
#include "recipes/recipe.h"
#include "runner/source_model.h"

namespace ptq::runner {

struct ExportPlan {
  std::map<std::string, recipes::Decision> decisions;
  recipes::ExportMetadata metadata;
  checkpoint::OutputLayout layout;
  std::vector<std::string> copied;  ///< tensors outside the layers that are copied as they are, in source order
  double bits_per_weight = 0;       ///< stored bits, scales included, over the weights of the decoder linears that are not ignored
};

/// Throws user Errors (decisions, engine).
ExportPlan plan_export(const SourceModel& source, const recipes::Recipe& recipe);
/// With formats that were decided elsewhere, also those of the KV cache.
ExportPlan plan_export(const SourceModel& source, const recipes::Recipe& recipe, std::map<std::string, recipes::Decision> decisions,
                       const recipes::KvFormats& kv_cache);

}  // namespace ptq::runner
