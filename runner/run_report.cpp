#include "runner/run_report.h"

#include "kernels/ops.h"
#include "recipes/version.h"

namespace ptq::runner {

using checkpoint::Json;

namespace {

/// null where there is none.
Json path_or_null(const std::string& path) { return path.empty() ? Json() : Json(path); }

}  // namespace

bool has_report(const RunRecord& record) {
  return !record.coverage.empty() || !record.choices.empty() || !record.autoquantize.is_null() || !record.ignored.empty();
}

Json run_report(const recipes::Recipe& recipe, const RunRecord& record) {
  Json report{{"program", recipes::kProgram}, {"reused", path_or_null(record.reused)}};
  if (!record.ignored.empty()) report["source"] = {{"ignored", record.ignored}};
  if (!record.choices.empty()) {
    Json choices = Json::array();
    for (const GroupChoice& choice : record.choices)
      choices.push_back({{"layer", choice.layer},
                         {"module", choice.module},
                         {"alpha", choice.exponents.alpha},
                         {"beta", choice.exponents.beta},
                         {"loss", choice.loss},
                         {"loss_unsmoothed", choice.plain_loss}});
    report["smoothing"] = choices;
  }
  if (!record.autoquantize.is_null()) report["autoquantize"] = record.autoquantize;
  if (record.coverage.empty()) return report;
  Json layers = Json::array();
  for (const auto& layer : record.coverage)
    layers.push_back({{"layer", layer.layer},
                      {"module", layer.module},
                      {"experts_below_minimum", layer.starved},
                      {"tokens", layer.tokens},
                      {"forced_tokens", layer.forced}});
  report["moe"] = {{"min_tokens_per_expert", recipe.moe.min_tokens_per_expert},
                   {"unseen", recipe.moe.unseen},
                   {"covered_fraction", recipes::covered_fraction(record.coverage)},
                   {"layers", layers}};
  return report;
}

Json run_manifest(const recipes::Recipe& recipe, const SourceModel& source, const ExportPlan& plan, const RunRecord& record) {
  Json decisions = Json::object();
  for (const auto& [module, decision] : plan.decisions)
    decisions[module] = {{"format", recipes::info(decision.encoding.format).name}, {"reason", decision.reason}};
  Json notes = Json::array();
  for (const auto& note : record.notes) notes.push_back({{"module", note.module}, {"note", note.note}});
  const parallel::MeshShape& shape = record.shape;
  return {{"program", recipes::kProgram},
          {"fingerprint", record.fingerprint},
          {"source", {{"path", recipe.model_path}, {"fingerprint", source.fingerprint}}},
          {"data",
           {{"files", recipe.calibration_data},
            {"rows", record.rows},
            {"fingerprint", record.data_fingerprint},
            {"reused", path_or_null(record.reused)}}},
          {"ranks", {{"data", shape.data}, {"pipeline", shape.pipeline}, {"tensor", shape.tensor}, {"expert", shape.expert}}},
          {"matmul", kernels::to_string(kernels::matmul_kernel())},
          {"verified_checks", record.verified_checks},
          {"decisions", decisions},
          {"notes", notes}};
}

}  // namespace ptq::runner
