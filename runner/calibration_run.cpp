#include "runner/calibration_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "runner/copied_tensors.h"
#include "runner/machine.h"
#include "runner/publication.h"
#include "runner/run_report.h"

namespace ptq::runner {

namespace {

SweepOptions sweep_options(const CalibrationInput& input) {
  const recipes::Recipe& recipe = input.recipe;
  SweepOptions options;
  options.forward = !input.rows.empty();
  options.operand = recipe.compute == "fp32" ? DType::kF32 : DType::kBF16;
  options.hidden = options.operand;
  options.host_memory = input.host_memory;
  options.scratch = recipe.scratch.empty() ? input.folder : recipe.scratch;
  return options;
}

/// Tells the log of every window; remembers the one before.
class LayerLog {
 public:
  LayerLog(RunLog& log, bool forward) : log_(log), forward_(forward) {}

  void tell(const SweepProgress& progress) {
    const double layer_seconds = progress.seconds - last_.seconds;
    const double left =
        progress.seconds / static_cast<double>(progress.layers_done) * static_cast<double>(progress.layers - progress.layers_done);
    log_.event("layer", {{"layer", progress.layers_done},
                         {"layer_seconds", layer_seconds},
                         {"forward_seconds", progress.forward_seconds - last_.forward_seconds},
                         {"read_wait_seconds", progress.wait_seconds - last_.wait_seconds},
                         {"bytes_read", progress.bytes_read - last_.bytes_read},
                         {"resident_bytes", resident_bytes()},
                         {"peak_bytes", peak_resident_bytes()}});
    const double layers_now = static_cast<double>(progress.layers_done - last_.layers_done);
    std::string text = human_bytes(static_cast<double>(progress.bytes_read - last_.bytes_read) / std::max(layer_seconds, 1e-9)) + "/s";
    if (forward_)
      text = fmt::format("{:.0f} tokens/s a layer, ", static_cast<double>(progress.tokens) * layers_now / std::max(layer_seconds, 1e-9)) +
             text;
    log_.progress(progress.layers_done, progress.layers,
                  fmt::format("{}, peak {}, {} left", text, human_bytes(static_cast<double>(peak_resident_bytes())), human_seconds(left)));
    last_ = progress;
  }
  const SweepProgress& last() const { return last_; }

 private:
  RunLog& log_;
  bool forward_;
  SweepProgress last_;
};

/// Every stage's coverage on every rank; throws when it is less than the recipe asks for. Collective.
std::vector<recipes::LayerCoverage> checked_coverage(const CalibrationInput& input, const Calibration& calibration,
                                                     const parallel::Mesh& mesh, RunLog& log) {
  parallel::Communicator& world = mesh.world();
  std::vector<recipes::LayerCoverage> coverage =
      gather_coverage(world, mesh.stage().rank() == 0 ? calibration.coverage() : std::vector<recipes::LayerCoverage>{});
  if (coverage.empty()) return coverage;
  for (const auto& layer : coverage)
    if (!layer.starved.empty()) log.event("starved_experts", {{"module", layer.module}, {"experts", layer.starved}});
  log.line(fmt::format("{:.2f} % of the experts saw at least {} tokens", 100 * recipes::covered_fraction(coverage),
                       input.recipe.moe.min_tokens_per_expert));
  world.together([&] { recipes::check_coverage(coverage, input.recipe); });
  return coverage;
}

}  // namespace

CalibrationResult run_calibration(const CalibrationInput& input, const parallel::Mesh& mesh, RunLog& log) {
  parallel::Communicator& world = mesh.world();
  const SourceModel& source = input.source;
  const SweepOptions options = sweep_options(input);
  Sweep sweep(source.spec, *source.reader, mesh, TokenRows::dealt(input.rows, mesh.shape().data, mesh.data_rank()), options);
  constexpr int64_t kQueue = int64_t{16} << 20;
  OutputStream output(checkpoint::ShardWriter::open(input.folder, input.plan.layout), kQueue);
  std::vector<int64_t> lengths;
  for (const auto& row : input.rows) lengths.push_back(static_cast<int64_t>(row.size()));
  Calibration calibration(source, input.recipe, input.plan, mesh, output, lengths,
                          {{input.folder + "/ptq-runner"}, input.attributes.at("run"), input.reused});
  LayerLog layers(log, options.forward);
  sweep.run(calibration, [&](const SweepProgress& progress) { layers.tell(progress); });
  if (sweep.spilled()) log.line("hidden states did not fit into memory.host and were spilled to " + options.scratch);
  if (sweep.streamed_experts() > 0)
    log.line(fmt::format("a layer's experts did not fit into memory.host: {} at a time", sweep.streamed_experts()));
  world.agree(calibration.error());
  CalibrationResult result;
  result.coverage = checked_coverage(input, calibration, mesh, log);
  calibration.quantize_head(sweep);
  const recipes::SearchSeconds& search = calibration.search_seconds();
  log.event("search", {{"gram_seconds", search.gram},
                       {"factor_seconds", search.factors},
                       {"scale_seconds", search.scales},
                       {"feedback_seconds", search.feedback}});
  log.event("sweep", {{"seconds_total", layers.last().seconds},
                      {"forward_seconds", layers.last().forward_seconds},
                      {"read_wait_seconds", layers.last().wait_seconds}});
  copy_tensors(*source.reader, input.plan.copied, mesh, output);
  output.finish();
  world.agree(output.error());

  // Every stage's first data and tensor rank holds its layers' statistics; they are small, and the first rank writes them.
  result.statistics = gather_statistics(world, mesh.stage().rank() == 0 ? calibration.statistics() : checkpoint::Stats{});
  std::string notes;
  if (mesh.stage().rank() == 0)
    for (const auto& note : calibration.notes()) notes += note.module + "\t" + note.note + "\n";
  for (const auto& note : calibration.expert_notes()) notes += note.module + "\t" + note.note + "\n";
  result.notes = parse_notes(world.gather_texts(notes));
  result.choices = gather_choices(world, mesh.stage().rank() == 0 ? calibration.choices() : std::vector<GroupChoice>{});
  if (input.recipe.awq.powers_of_two) calibration.folds().merge(world);
  result.folds = std::move(calibration.folds());
  int64_t totals[2] = {source.reader->bytes_read(), output.bytes_written()};
  world.all_reduce_sum(std::span<int64_t>(totals));
  log.event("transferred", {{"bytes_read", totals[0]}, {"bytes_written", totals[1]}});
  return result;
}

}  // namespace ptq::runner
