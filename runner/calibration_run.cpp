#include "runner/calibration_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "runner/copied_tensors.h"
#include "runner/machine.h"
#include "runner/plain_client.h"
#include "runner/progress.h"

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
    const double left = progress.seconds / static_cast<double>(progress.layers_done - progress.first_layer) *
                        static_cast<double>(progress.layers - progress.layers_done);
    log_.event("layer", {{"layer", progress.layers_done},
                         {"layer_seconds", layer_seconds},
                         {"forward_seconds", progress.forward_seconds - last_.forward_seconds},
                         {"read_wait_seconds", progress.wait_seconds - last_.wait_seconds},
                         {"bytes_read", progress.bytes_read - last_.bytes_read},
                         {"resident_bytes", resident_bytes()},
                         {"peak_bytes", peak_resident_bytes()}});
    const double layers_now = static_cast<double>(progress.layers_done - std::max(last_.layers_done, progress.first_layer));
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

/// Throws when experts were seen less than the recipe asks for. Collective.
void check_coverage(const CalibrationInput& input, const std::vector<recipes::LayerCoverage>& coverage, parallel::Communicator& world,
                    RunLog& log) {
  if (coverage.empty()) return;
  for (const auto& layer : coverage)
    if (!layer.starved.empty()) log.event("starved_experts", {{"module", layer.module}, {"experts", layer.starved}});
  log.line(fmt::format("{:.2f} % of the experts saw at least {} tokens", 100 * recipes::covered_fraction(coverage),
                       input.recipe.moe.min_tokens_per_expert));
  world.together([&] { recipes::check_coverage(coverage, input.recipe); });
}

/// What an earlier run has done, or a new beginning: shards of the right size, and folders. Collective.
CalibrationResult begin(const CalibrationInput& input, const Progress& progress, parallel::Communicator& world, RunLog& log) {
  CalibrationResult result;
  if (progress.is_new()) {
    world.on_root([&] {
      if (!input.rows.empty() || input.reused) checkpoint::make_folder(StatisticsFiles{input.folder + "/ptq-runner"}.details());
      checkpoint::ShardWriter::create(input.folder, input.plan.layout);
    });
    return result;
  }
  log.line(progress.is_done() ? "done by an earlier run"
                              : fmt::format("going on after layer {}, which an earlier run reached", progress.layers()));
  log.event("resumed", {{"layer", progress.layers()}, {"done", progress.is_done()}});
  world.together([&] {
    for (const std::string& part : progress.parts()) result.add(unpack(part, input.progress));
  });
  return result;
}

/// Takes the tokens through the layers that are done already, for the sake of the hidden states behind them alone. Collective.
void recompute(const CalibrationInput& input, const parallel::Mesh& mesh, SweepOptions options, const std::string& states, RunLog& log) {
  log.line("hidden states were not kept: they are computed again");
  options.end_layer = options.first_layer;
  options.first_layer = 0;
  Sweep sweep(input.source.spec, *input.source.reader, mesh, TokenRows::dealt(input.rows, mesh.shape().data, mesh.data_rank()), options);
  PlainClient client;
  sweep.run(client, [&](const SweepProgress& swept) {
    log.event("recomputed", {{"layer", swept.layers_done}});
    log.progress(swept.layers_done, swept.layers, "computed again");
  });
  sweep.save_hidden_states(states);
}

}  // namespace

CalibrationResult run_calibration(const CalibrationInput& input, const parallel::Mesh& mesh, RunLog& log) {
  parallel::Communicator& world = mesh.world();
  const SourceModel& source = input.source;
  Progress progress(world, input.progress);
  CalibrationResult result = begin(input, progress, world, log);
  if (progress.is_done()) return result;

  SweepOptions options = sweep_options(input);
  options.first_layer = progress.layers();
  options.hidden_states = progress.states(progress.layers());
  if (options.forward && options.first_layer > 0) {
    int64_t kept = 0;
    world.on_root([&] { kept = checkpoint::exists(options.hidden_states) ? 1 : 0; });
    world.broadcast(&kept, sizeof(kept), 0);
    if (kept == 0) recompute(input, mesh, options, options.hidden_states, log);
  }
  Sweep sweep(source.spec, *source.reader, mesh, TokenRows::dealt(input.rows, mesh.shape().data, mesh.data_rank()), options);
  constexpr int64_t kQueue = int64_t{16} << 20;
  OutputStream output(checkpoint::ShardWriter::open(input.folder, input.plan.layout), kQueue);
  std::vector<int64_t> lengths;
  for (const auto& row : input.rows) lengths.push_back(static_cast<int64_t>(row.size()));
  Calibration calibration(source, input.recipe, input.plan, mesh, output, lengths,
                          {{input.folder + "/ptq-runner"}, input.attributes.at("run"), input.reused});
  // Every stage tells of its own layers; from here on all ranks know of all.
  const auto advance = [&](int64_t layers_done, bool done) {
    world.agree(calibration.error());
    const CalibrationResult part = gather(world, calibration.take_result());
    progress.advance(layers_done, done, pack(part));
    result.add(part);
  };
  LayerLog layers(log, options.forward);
  sweep.run(calibration, [&](const SweepProgress& swept) {
    layers.tell(swept);
    output.flush();
    if (options.forward && input.recipe.hidden_states == "every_window") sweep.save_hidden_states(progress.states(swept.layers_done));
    advance(swept.layers_done, false);
  });
  if (sweep.spilled()) log.line("hidden states did not fit into memory.host and were spilled to " + options.scratch);
  if (sweep.streamed_experts() > 0)
    log.line(fmt::format("a layer's experts did not fit into memory.host: {} at a time", sweep.streamed_experts()));
  check_coverage(input, result.coverage, world, log);
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
  advance(progress.layers(), true);
  int64_t totals[2] = {source.reader->bytes_read(), output.bytes_written()};
  world.all_reduce_sum(std::span<int64_t>(totals));
  log.event("transferred", {{"bytes_read", totals[0]}, {"bytes_written", totals[1]}});
  return result;
}

}  // namespace ptq::runner
