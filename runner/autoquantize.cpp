#include "runner/autoquantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "runner/machine.h"
#include "runner/mix_judge.h"
#include "runner/mixed_reader.h"
#include "runner/progress.h"
#include "runner/publication.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

constexpr const char* kFolder = "/candidates/";

/// Rows that mixes are compared on: an eighth, at most 16.
size_t held_back_rows(size_t rows) { return rows < 2 ? 0 : std::clamp<size_t>(rows / 8, 1, 16); }

/// The rows that candidates are scored on.
size_t scored_rows(const recipes::Recipe& recipe, size_t rows) {
  return std::min(static_cast<size_t>(recipe.autoquantize.score_samples), rows - held_back_rows(rows));
}

/// One line of the table of groups.
void log_decision(RunLog& log, const std::string& group, const std::string& format, int64_t bits, double score) {
  log.event("decision", {{"group", group}, {"format", format}, {"bits", bits}, {"score", score}});
  log.detail(fmt::format("{:<56} {:<12} {:>10} score {:.3e}", group, format, human_bytes(static_cast<double>(bits) / 8), score));
}

}  // namespace

AutoQuantize::AutoQuantize(const recipes::Recipe& recipe, const SourceModel& source) : recipe_(recipe), source_(source) {
  for (const auto& layer : source.spec.layers)
    for (const auto& linear : layer.linears) linears_[linear.module] = &linear;
  recipes::Recipe folded = recipe;
  folded.awq.fold = "all";
  sensitivity_.presets = recipes::candidate_presets(recipe);
  sensitivity_.groups = recipes::decision_groups(source.spec, folded, [&](const layers::LinearSpec& linear) {
    return 8 * dtype_bytes(source.reader->at(linear.tensor(".weight")).dtype);
  });
  for (const auto& group : sensitivity_.groups) sensitivity_.scores.emplace_back(group.options.size(), 0.0);
  items_ = recipes::knapsack_groups(sensitivity_.groups, sensitivity_.scores);
  budget_ =
      recipes::budget_of(sensitivity_.groups, recipe.autoquantize.effective_bits, recipe.where("quantization.autoquantize.effective_bits"));
  const recipes::KvCacheRules& kv = recipe.autoquantize.kv_cache;
  if (!kv.formats.empty()) {
    sensitivity_.kv = recipes::kv_choice(source.spec, recipe);
    kv_budget_ =
        recipes::budget_of(sensitivity_.kv.groups, kv.effective_bits, recipe.where("quantization.autoquantize.kv_cache.effective_bits"));
  }

  // AWQ's factors suit the other candidates better than SmoothQuant's, which look at maxima alone.
  const std::vector<std::string>& presets = sensitivity_.presets;
  const auto rank = [&](const std::string& preset) {
    const std::string& method = recipes::find_preset(preset, "").method;
    return preset == "none" ? 0 : method == "awq" ? 3 : method == "smoothquant" ? 2 : 1;
  };
  for (size_t c = 1; c < presets.size(); ++c)
    if (rank(presets[c]) > rank(presets[first_])) first_ = c;
  for (size_t c = 0; c < presets.size(); ++c)
    candidates_.push_back(presets[c] == "none" ? Candidate{"none"} : make_candidate(presets[c], c == first_));
}

void AutoQuantize::find_scores(const std::string& data_fingerprint, size_t rows) {
  std::string candidates;
  for (const std::string& preset : sensitivity_.presets) candidates += (candidates.empty() ? "" : ", ") + preset;
  candidates += "; group_size " + std::to_string(recipe_.group_size) + ", dialect " + recipe_.dialect + ", compute " + recipe_.compute +
                ", fp8_quotient " + recipe_.fp8_quotient + ", ignore";
  for (const std::string& pattern : recipe_.ignore) candidates += " " + pattern;
  if (!sensitivity_.kv.formats.empty()) candidates += ", kv_cache";
  for (const std::string& format : sensitivity_.kv.formats) candidates += " " + format;
  sensitivity_.identity = {source_.fingerprint,
                           data_fingerprint,
                           candidates,
                           recipe_.autoquantize.cost,
                           recipe_.autoquantize.expert_granularity,
                           static_cast<int64_t>(scored_rows(recipe_, rows))};
  if (recipe_.autoquantize.scores.empty()) return;
  recipes::Sensitivity kept = recipes::read_scores(recipe_.autoquantize.scores);
  recipes::check_identity(kept.identity, sensitivity_.identity, recipe_.autoquantize.scores,
                          recipe_.where("quantization.autoquantize.scores"));
  sensitivity_ = std::move(kept);
  items_ = recipes::knapsack_groups(sensitivity_.groups, sensitivity_.scores);
}

Candidate AutoQuantize::make_candidate(const std::string& preset, bool has_folds) const {
  Candidate candidate;
  candidate.name = preset;
  candidate.recipe = recipes::with_preset(recipe_, preset);
  recipes::Recipe& recipe = candidate.recipe;
  recipe.awq.fold = "all";
  recipe.awq.powers_of_two = has_folds;
  recipe.awq.smooth = has_folds;
  if (!has_folds && recipe.method == "smoothquant") recipe.method = "minmax";
  // One has the scales of the KV cache, which are the same for FP8 and NVFP4.
  if (!has_folds)
    recipe.kv_cache = "none";
  else if (!sensitivity_.kv.formats.empty())
    recipe.kv_cache = "fp8";
  recipe.ignore.emplace_back("lm_head");
  const recipes::Encoding encoding = recipes::encoding_of(recipes::find_format(recipe.format, "").format, recipe);
  for (const recipes::DecisionGroup& group : sensitivity_.groups)
    if (std::any_of(group.modules.begin(), group.modules.end(),
                    [&](const auto& module) { return !recipes::layout_fault(encoding, *linears_.at(module)).empty(); }))
      recipe.ignore.insert(recipe.ignore.end(), group.modules.begin(), group.modules.end());
  candidate.plan = plan_export(source_, recipe);
  return candidate;
}

int64_t AutoQuantize::scratch_bytes() const {
  int64_t bytes = 0;
  for (const Candidate& candidate : candidates_) bytes += candidate.plan.layout.tensor_bytes();
  return bytes;
}

void AutoQuantize::calibrate(Candidate& candidate, const SourceModel& source, const parallel::Mesh& mesh,
                             const std::vector<std::vector<int32_t>>& rows, std::map<std::string, std::string> attributes,
                             const std::string& work, int64_t host_memory, RunLog& log, CalibrationResult& result) {
  static const std::vector<std::vector<int32_t>> kNoRows;
  log.line("candidate " + candidate.name);
  mesh.world().on_root([&] { checkpoint::make_folder(candidate.folder); });
  const bool needs_rows = recipes::needs_calibration(candidate.plan.decisions, candidate.recipe);
  result = run_calibration({source, candidate.recipe, candidate.plan, needs_rows ? rows : kNoRows, candidate.folder,
                            progress_folder(work, "candidate-" + candidate.name), std::move(attributes), nullptr, host_memory},
                           mesh, log);
  mesh.world().on_root([&] { write_companions(candidate.folder, source_, candidate.plan); });
  mesh.world().together([&] {
    candidate.model.reader = checkpoint::open_checkpoint(candidate.folder);
    candidate.model.config = recipes::quantized_config(source_.config, candidate.plan.metadata);
    candidate.model.spec = source_.spec;
  });
}

void AutoQuantize::run(parallel::Communicator& world, const parallel::MeshShape& shape, const std::vector<std::vector<int32_t>>& rows,
                       const std::map<std::string, std::string>& attributes, const std::string& work, int64_t host_memory, RunLog& log) {
  const parallel::Mesh mesh = parallel::Mesh::make(world, shape);
  for (Candidate& candidate : candidates_) candidate.folder = work + kFolder + candidate.name;
  calibrate(candidates_[first_], source_, mesh, rows, attributes, work, host_memory, log, calibration_);
  world.together([&] {
    folded_ = open_source(recipe_.model_path, recipe_.model_config);
    folded_.reader = open_folded(std::move(folded_.reader), std::move(calibration_.folds));
  });
  for (size_t c = 0; c < candidates_.size(); ++c) {
    if (c == first_ || candidates_[c].name == "none") continue;
    CalibrationResult result;
    calibrate(candidates_[c], folded_, mesh, rows, attributes, work, host_memory, log, result);
    for (auto& note : result.notes) calibration_.notes.push_back(std::move(note));
  }
  const auto last = rows.begin() + static_cast<std::ptrdiff_t>(scored_rows(recipe_, rows.size()));
  if (recipe_.autoquantize.scores.empty()) {
    // Ranks of a pipeline share the rows as well: a layer at a time is in memory.
    const parallel::Mesh flat = parallel::Mesh::make(world, {shape.data * shape.pipeline, 1, shape.tensor, shape.expert});
    score(flat, {rows.begin(), last}, work, host_memory, log);
  } else {
    log.line("scores of " + recipe_.autoquantize.scores);
  }
  world.on_root([&] { recipes::write_scores(work + "/ptq-runner/scores.h5", sensitivity_); });
  const auto held = static_cast<std::ptrdiff_t>(held_back_rows(rows.size()));
  decide(world, {held == 0 ? rows.begin() : rows.end() - held, rows.end()}, work, host_memory, log);
  const recipes::Choices choices{mixes_[winner_].mix.choice, kv_mix_.choice};
  world.on_root([&] { recipes::write_scores(work + "/ptq-runner/scores.h5", sensitivity_, choices); });
}

void AutoQuantize::score(const parallel::Mesh& mesh, const std::vector<std::vector<int32_t>>& rows, const std::string& work,
                         int64_t host_memory, RunLog& log) {
  const std::vector<recipes::DecisionGroup>& groups = sensitivity_.groups;
  ScoringInput input{folded_, {}, {}, static_cast<int>(groups.size()), rows};
  std::vector<int> scored(candidates_.size(), -1);  // index among those that quantize
  for (size_t c = 0; c < candidates_.size(); ++c) {
    if (candidates_[c].name == "none") continue;
    scored[c] = static_cast<int>(input.candidates.size());
    input.candidates.push_back(&candidates_[c].model);
  }
  for (size_t g = 0; g < groups.size(); ++g)
    for (const std::string& module : groups[g].modules) input.group_of[module] = static_cast<int>(g);
  for (const std::string& format : sensitivity_.kv.formats) input.kv_formats.push_back(recipes::kv_format(format));
  input.kv_scales = static_cast<size_t>(scored[first_]);
  input.seed = recipe_.seed;
  input.fp32 = recipe_.compute == "fp32";
  input.host_memory = host_memory;
  input.scratch = recipe_.scratch.empty() ? work : recipe_.scratch;
  input.progress = progress_folder(work, "scores");
  log.line(fmt::format("scoring {} groups in {} formats on {} samples", groups.size(), input.candidates.size(), rows.size()));
  const ScoringResult result = score_candidates(input, mesh, [&](bool backward, const SweepProgress& progress) {
    if (backward) log.event("scored_layer", {{"layer", progress.layers - progress.layers_done}, {"seconds_total", progress.seconds}});
    log.progress(progress.layers_done, progress.layers,
                 fmt::format("{}, peak {}", backward ? "backward" : "forward", human_bytes(static_cast<double>(peak_resident_bytes()))));
  });
  log.event("scored", {{"forward_seconds", result.forward_seconds},
                       {"backward_seconds", result.backward_seconds},
                       {"tokens", result.tokens},
                       {"candidates", input.candidates.size()}});
  for (size_t g = 0; g < groups.size(); ++g)
    for (size_t o = 0; o < groups[g].options.size(); ++o) {
      const int candidate = scored[static_cast<size_t>(groups[g].options[o].candidate)];
      sensitivity_.scores[g][o] = candidate < 0 ? 0.0 : result.scores[g][static_cast<size_t>(candidate)];
    }
  items_ = recipes::knapsack_groups(groups, sensitivity_.scores);
  if (!sensitivity_.kv.groups.empty()) sensitivity_.kv.scores = result.kv_scores;
}

void AutoQuantize::decide(parallel::Communicator& world, const std::vector<std::vector<int32_t>>& held_back, const std::string& work,
                          int64_t host_memory, RunLog& log) {
  SourceModel plain;
  world.together([&] { plain = open_source(recipe_.model_path, recipe_.model_config); });
  MixJudge judge(
      world, std::move(plain), held_back,
      {.fp32 = recipe_.compute == "fp32", .host_memory = host_memory / 2, .scratch = recipe_.scratch.empty() ? work : recipe_.scratch});
  decide_kv_cache(log);
  for (recipes::Mix& mix : recipes::best_mixes(items_, budget_, static_cast<int>(recipe_.autoquantize.kl_checks))) {
    SourceModel model;
    world.together([&] { model = model_of(mix); });
    const double kl = judge.kl(std::move(model));
    log.line(fmt::format("mix {}: {:.4f} bits a weight, estimated KL {:.5f}, true KL {:.5f} nats a token", mixes_.size() + 1,
                         recipes::effective_bits(sensitivity_.groups, mix.cost), estimated_kl(mix.score), kl));
    mixes_.push_back({std::move(mix), kl});
  }
  for (size_t m = 1; m < mixes_.size(); ++m)
    if (mixes_[m].kl < mixes_[winner_].kl) winner_ = m;
  const recipes::Mix& mix = mixes_[winner_].mix;
  world.together([&] {
    plan_ = plan_of(mix);
    tensors_ = tensors_of(mix, plan_);
  });
  const std::vector<recipes::DecisionGroup>& groups = sensitivity_.groups;
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto option = static_cast<size_t>(mix.choice[g]);
    log_decision(log, groups[g].name, chosen(mix, g).name, groups[g].options[option].bits, sensitivity_.scores[g][option]);
  }
}

void AutoQuantize::decide_kv_cache(RunLog& log) {
  const recipes::KvSensitivity& kv = sensitivity_.kv;
  if (kv.groups.empty()) return;
  kv_mix_ = recipes::solve(recipes::knapsack_groups(kv.groups, kv.scores), kv_budget_);
  log.line(fmt::format("KV cache: {:.4f} bits a number, estimated KL {:.5f} nats a token", recipes::effective_bits(kv.groups, kv_mix_.cost),
                       kv_mix_.score));
  for (size_t g = 0; g < kv.groups.size(); ++g) {
    const auto o = static_cast<size_t>(kv_mix_.choice[g]);
    log_decision(log, kv.groups[g].name + " KV cache", kv.formats[static_cast<size_t>(kv.groups[g].options[o].candidate)],
                 kv.groups[g].options[o].bits, kv.scores[g][o]);
  }
}

const Candidate& AutoQuantize::chosen(const recipes::Mix& mix, size_t group) const {
  const recipes::DecisionOption& option = sensitivity_.groups[group].options[static_cast<size_t>(mix.choice[group])];
  return candidates_[static_cast<size_t>(option.candidate)];
}

ExportPlan AutoQuantize::plan_of(const recipes::Mix& mix) const {
  std::map<std::string, recipes::Decision> decisions = recipes::decide_formats(source_.spec, recipe_);
  for (size_t g = 0; g < sensitivity_.groups.size(); ++g) {
    const Candidate& candidate = chosen(mix, g);
    for (const std::string& module : sensitivity_.groups[g].modules) {
      recipes::Decision& decision = decisions.at(module);
      if (decision.is_ignored) continue;
      if (candidate.name != "none") decision = candidate.plan.decisions.at(module);
      decision.reason = "autoquantize: " + candidate.name;
    }
  }
  const bool is_chosen = !sensitivity_.kv.groups.empty();
  return plan_export(source_, recipe_, std::move(decisions),
                     is_chosen ? recipes::kv_formats_of(sensitivity_.kv, kv_mix_)
                               : recipes::uniform_kv_formats(source_.spec, recipes::kv_format(recipe_.kv_cache)));
}

SourceModel AutoQuantize::model_of(const recipes::Mix& mix) const {
  const ExportPlan plan = plan_of(mix);
  SourceModel model;
  model.reader = tensors_of(mix, plan);
  model.config = recipes::quantized_config(source_.config, plan.metadata);
  model.spec = source_.spec;
  return model;
}

std::unique_ptr<checkpoint::Reader> AutoQuantize::tensors_of(const recipes::Mix& mix, const ExportPlan& plan) const {
  std::map<std::string, const checkpoint::Reader*> readers;
  // What is quantized lies with its candidate, scales of the KV cache with the first, everything else with the folded model.
  for (const auto& [name, place] : plan.layout.places())
    readers[name] = folded_.reader->find(name) ? folded_.reader.get() : candidates_[first_].model.reader.get();
  for (size_t g = 0; g < sensitivity_.groups.size(); ++g) {
    const Candidate& candidate = chosen(mix, g);
    for (const std::string& module : sensitivity_.groups[g].modules)
      if (const recipes::Encoding& encoding = plan.decisions.at(module).encoding; encoding.is_quantized())
        for (const auto& part : recipes::encoded_tensors(encoding, *linears_.at(module)))
          readers[part.tensor.name] = candidate.model.reader.get();
  }
  return open_mixed(readers);
}

Json AutoQuantize::report() const {
  const recipes::Mix& mix = mixes_[winner_].mix;
  const auto bits_of = [&](int64_t cost) { return recipes::effective_bits(sensitivity_.groups, cost); };
  Json groups = Json::array();
  for (size_t g = 0; g < sensitivity_.groups.size(); ++g) {
    const recipes::DecisionGroup& group = sensitivity_.groups[g];
    Json options = Json::array();
    for (size_t o = 0; o < group.options.size(); ++o)
      options.push_back({{"format", sensitivity_.presets[static_cast<size_t>(group.options[o].candidate)]},
                         {"bits", group.options[o].bits},
                         {"score", sensitivity_.scores[g][o]}});
    groups.push_back(
        {{"group", group.name}, {"layer", group.layer}, {"weights", group.weights}, {"format", chosen(mix, g).name}, {"options", options}});
  }
  Json mixes = Json::array(), front = Json::array();
  for (const CheckedMix& checked : mixes_)
    mixes.push_back({{"effective_bits", bits_of(checked.mix.cost)}, {"estimated_kl", estimated_kl(checked.mix.score)}, {"kl", checked.kl}});
  for (const auto& point : recipes::pareto(items_))
    front.push_back({{"effective_bits", bits_of(point.cost)}, {"estimated_kl", estimated_kl(point.score)}});
  Json report{{"effective_bits", bits_of(mix.cost)},
              {"budget", recipe_.autoquantize.effective_bits},
              {"cost", recipe_.autoquantize.cost},
              {"scored_rows", sensitivity_.identity.rows},
              {"groups", groups},
              {"mixes", mixes},
              {"chosen_mix", winner_},
              {"pareto", front}};
  if (!sensitivity_.kv.groups.empty())
    report["kv_cache"] = recipes::kv_report(sensitivity_.kv, kv_mix_, recipe_.autoquantize.kv_cache.effective_bits);
  return report;
}

void AutoQuantize::remove_candidates(const std::string& work) const { checkpoint::remove_tree(work + "/candidates"); }

}  // namespace ptq::runner
