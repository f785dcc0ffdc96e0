#include "runner/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <set>

#include "kernels/core/thread_pool.h"
#include "kernels/ops.h"
#include "parallel/stop.h"
#include "recipes/engine_support.h"
#include "recipes/version.h"
#include "runner/autoquantize.h"
#include "runner/calibration_rows.h"
#include "runner/calibration_run.h"
#include "runner/copied_tensors.h"
#include "runner/machine.h"
#include "runner/mesh_shape.h"
#include "runner/progress.h"
#include "runner/publication.h"
#include "runner/run_identity.h"
#include "runner/run_report.h"
#include "runner/verify.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;
using parallel::Communicator;

recipes::Recipe read_recipe(Communicator& world, const QuantizeOptions& options) {
  std::string text;
  world.on_root([&] {
    if (!checkpoint::exists(options.recipe_path))
      throw user_error("there is no such recipe", options.recipe_path,
                       "give the path of a recipe.yaml; ptq-runner --help lists the subcommands");
    text = checkpoint::read_text(options.recipe_path);
  });
  auto bytes = static_cast<int64_t>(text.size());
  world.broadcast(&bytes, sizeof(bytes), 0);
  text.resize(static_cast<size_t>(bytes));
  world.broadcast(text.data(), bytes, 0);
  recipes::Recipe recipe;
  world.together([&] {
    recipe = recipes::parse_recipe(text, options.recipe_path, options.overrides);
    // Without scores nothing would be quantized.
  });
  return recipe;
}

int64_t host_memory(const recipes::Recipe& recipe, const parallel::Session& session) {
  return recipe.host_memory > 0 ? recipe.host_memory : default_host_memory(session.local_ranks());
}

/// Everything from the plan on.
class Job {
 public:
  Job(parallel::Session& session, recipes::Recipe recipe, bool restart, RunLog& log)
      : world_(session.world()), session_(session), recipe_(std::move(recipe)), restart_(restart), log_(log) {}

  /// False when the output was there already, complete, from the same recipe.
  bool prepare();
  void run();
  /// After an error: what was done is kept where the same run may get further.
  void give_up(const Error& error) const;

 private:
  /// What the calibration is made of: rows of tokens, or an earlier run's statistics. Collective.
  void find_activations();
  std::string describe_activations() const;
  /// What has to be the same for a stopped run to be gone on with.
  std::map<std::string, std::string> identity() const;
  void calibrate_and_write(const parallel::Mesh& mesh);
  /// The same with AutoQuantize's choice of formats.
  void choose_and_write(const parallel::Mesh& mesh);
  void keep(CalibrationResult result);
  void publish();

  Communicator& world_;
  parallel::Session& session_;
  recipes::Recipe recipe_;
  bool restart_;
  RunLog& log_;
  SourceModel source_;
  ExportPlan plan_;
  std::unique_ptr<ReusedStatistics> reused_;    ///< or nullptr
  std::unique_ptr<AutoQuantize> autoquantize_;  ///< or nullptr
  std::vector<std::vector<int32_t>> rows_;
  int64_t tokens_ = 0;                             ///< of all rows
  std::map<std::string, std::string> attributes_;  ///< of the statistics
  RunRecord record_;
  std::string work_;
  bool owns_work_ = false, forward_ = false;
  std::optional<Lease> lease_;  ///< of the work folder, on rank 0
  checkpoint::Stats stats_;
};

bool Job::prepare() {
  world_.together([&] {
    source_ = open_source(recipe_.model_path, recipe_.model_config);
    check_tensors(source_);
    record_.shape = mesh_shape(source_.spec, recipe_, world_.size());
    plan_ = plan_export(source_, recipe_);
    if (recipe_.method == "autoquantize") autoquantize_ = std::make_unique<AutoQuantize>(recipe_, source_);
  });
  log_.line(fmt::format("{}: {} with {} layers, {} in {} tensors", recipe_.model_path, source_.spec.family, source_.spec.layers.size(),
                        human_bytes(static_cast<double>(source_.weight_bytes)), source_.reader->tensors().size()));
  if (!source_.ignored.empty()) log_.line("ignored: " + ignored_words(source_.ignored));
  record_.ignored = source_.ignored;
  find_activations();
  record_.fingerprint =
      checkpoint::sha256_text(recipes::to_yaml(recipe_, false) + source_.fingerprint + record_.data_fingerprint + recipes::kProgram);
  log_.event("plan", {{"family", source_.spec.family},
                      {"layers", source_.spec.layers.size()},
                      {"source_bytes", source_.weight_bytes},
                      {"output_bytes", plan_.layout.tensor_bytes()},
                      {"ranks", world_.size()},
                      {"data", record_.shape.data},
                      {"pipeline", record_.shape.pipeline},
                      {"tensor", record_.shape.tensor},
                      {"expert", record_.shape.expert},
                      {"threads", num_threads()},
                      {"matmul", kernels::to_string(kernels::matmul_kernel())},
                      {"samples", rows_.size()},
                      {"tokens", tokens_},
                      {"reused", record_.reused}});
  log_.line(fmt::format("{} rank(s): data {} × pipeline {} × tensor {}{}, {} thread(s) each, {} arithmetic{}", world_.size(),
                        record_.shape.data, record_.shape.pipeline, record_.shape.tensor,
                        record_.shape.expert > 1 ? fmt::format(", experts over {}", record_.shape.expert) : "", num_threads(),
                        kernels::to_string(kernels::matmul_kernel()), describe_activations()));

  int64_t complete = 0;
  world_.on_root([&] { complete = check_output_folder(recipe_, record_.fingerprint) ? 1 : 0; });
  world_.broadcast(&complete, sizeof(complete), 0);
  if (complete) {
    log_.line(recipe_.output_path + " is complete already, made from this very recipe: nothing to do");
    return false;
  }
  return true;
}

void Job::find_activations() {
  world_.together([&] {
    const bool needed = autoquantize_ || recipes::needs_calibration(plan_.decisions, recipe_);
    const bool searches = needed && (recipe_.method == "awq" || (recipe_.method == "smoothquant" && recipe_.smoothquant.alpha_auto));
    if (!recipe_.reuse.empty()) reused_ = std::make_unique<ReusedStatistics>(recipe_, source_.fingerprint, searches);
    forward_ = needed && !reused_;
    if (forward_ || (reused_ && !recipe_.calibration_data.empty())) rows_ = read_rows(recipe_, source_);
    record_.data_fingerprint = rows_fingerprint(rows_);
    if (autoquantize_) autoquantize_->find_scores(record_.data_fingerprint, rows_.size());
    if (!reused_) return;
    if (!recipe_.calibration_data.empty() && record_.data_fingerprint != reused_->data_fingerprint())
      throw user_error("the statistics in calibration.reuse are of other data than calibration.data",
                       recipe_.where("calibration.data") + ", " + reused_->path(),
                       "name the data they are of, or none, or calibrate again without calibration.reuse");
    record_.data_fingerprint = reused_->data_fingerprint();
    rows_.clear();
  });
  for (const auto& row : rows_) tokens_ += static_cast<int64_t>(row.size());
  record_.rows = reused_ ? reused_->rows() : static_cast<int64_t>(rows_.size());
  if (reused_) record_.reused = reused_->path();
  attributes_ = run_attributes(recipe_, source_.fingerprint, record_.data_fingerprint, static_cast<int64_t>(rows_.size()), tokens_);
  if (!reused_) return;
  const std::string keeps_gram = recipe_.keep_gram ? "true" : "false";
  attributes_ = reused_->all().attributes;
  attributes_["keep_gram"] = keeps_gram;
}

std::string Job::describe_activations() const {
  if (reused_)
    return fmt::format("; no forward pass: statistics of {} samples, {} tokens from {}", reused_->rows(), reused_->tokens(),
                       reused_->path());
  if (!forward_) return "; weights only, no calibration";
  const std::string grams =
      recipe_.keep_gram ? ", Gram matrices of up to " + human_bytes(static_cast<double>(gram_file_bytes(source_.spec))) + " are kept" : "";
  return fmt::format("; {} samples, {} tokens{}", rows_.size(), tokens_, grams);
}

std::map<std::string, std::string> Job::identity() const {
  return {{"recipe", checkpoint::sha256_text(recipes::to_yaml(recipe_, false))},
          {"source", source_.fingerprint},
          {"data", record_.data_fingerprint},
          {"program", recipes::kProgram},
          {"arithmetic", kernels::to_string(kernels::matmul_kernel())}};
}

void Job::give_up(const Error& error) const {
  if (world_.rank() != 0 || !owns_work_) return;
  const ErrorKind kind = error.kind();
  const bool may_get_further = kind == ErrorKind::kSystem || kind == ErrorKind::kBug || kind == ErrorKind::kStopped;
  if (!may_get_further || !has_progress(work_)) return checkpoint::remove_tree(work_);
  log_.line("what is done is kept in " + work_ + ": the same run goes on from there");
}

void Job::run() {
  work_ = recipe_.output_path + ".work";
  world_.on_root([&] {
    const int64_t grams = recipe_.keep_gram && (forward_ || reused_) ? gram_file_bytes(source_.spec) : 0;
    const int64_t candidates = autoquantize_ ? autoquantize_->scratch_bytes() : 0;
    // The hidden states after the last window and those after the one before it.
    const int64_t states = forward_ ? 2 * tokens_ * source_.spec.hidden * (recipe_.compute == "fp32" ? 4 : 2) : 0;
    WorkFolder folder =
        make_work_folder(work_, recipe_.output_path, plan_.layout.tensor_bytes() + grams + candidates + states, identity(), restart_);
    lease_ = std::move(folder.lease);
    owns_work_ = true;
    if (folder.resumes) log_.line("going on with the unfinished run in " + work_);
  });
  log_.keep_in(work_ + "/ptq-runner/run.jsonl");
  const parallel::Mesh mesh = parallel::Mesh::make(world_, record_.shape);
  if (autoquantize_)
    choose_and_write(mesh);
  else
    calibrate_and_write(mesh);
  world_.on_root([&] {
    write_companions(work_, source_, plan_);
    checkpoint::write_text(work_ + "/ptq-runner/recipe.yaml", recipes::to_yaml(recipe_, true));  // tells verification what may have changed
  });
  log_.event("written", {{"peak_bytes", peak_resident_bytes()}});
  if (recipe_.verify) {
    const VerifyResult verified = verify_export(work_, recipe_.model_path, recipe_.model_config, &plan_.layout, world_);
    record_.verified_checks = verified.checks;
    log_.event("verified", {{"checks", verified.checks}, {"failures", verified.failures}, {"peak_bytes", peak_resident_bytes()}});
    if (!verified.failures.empty()) {
      for (const auto& failure : verified.failures) log_.warning(failure);
      throw parallel::AgreedError(Error(
          ErrorKind::kCheck, fmt::format("verification failed: {} ({} failures)", verified.failures.front(), verified.failures.size()),
          recipe_.output_path, "the output was not kept; check the disk, then run again"));
    }
  }
  int64_t peak = peak_resident_bytes();
  world_.all_reduce_max(std::span<int64_t>(&peak, 1));
  log_.event("finished", {{"peak_bytes_of_any_rank", peak}});
  publish();
}

void Job::calibrate_and_write(const parallel::Mesh& mesh) {
  const CalibrationInput input{source_,     recipe_,       plan_,
                               rows_,       work_,         progress_folder(work_, "calibration"),
                               attributes_, reused_.get(), host_memory(recipe_, session_)};
  keep(run_calibration(input, mesh, log_));
  if (reused_) stats_.integers.insert(reused_->all().integers.begin(), reused_->all().integers.end());
}

void Job::keep(CalibrationResult result) {
  stats_ = std::move(result.statistics);
  record_.coverage = std::move(result.coverage);
  record_.notes = std::move(result.notes);
  record_.choices = std::move(result.choices);
  for (const auto& note : record_.notes) log_.warning(note.module + ": " + note.note);
}

void Job::choose_and_write(const parallel::Mesh& mesh) {
  autoquantize_->run(world_, record_.shape, rows_, attributes_, work_, host_memory(recipe_, session_), log_);
  keep(std::move(autoquantize_->calibration()));
  record_.autoquantize = autoquantize_->report();
  plan_ = autoquantize_->plan();
  world_.on_root([&] { checkpoint::ShardWriter::create(work_, plan_.layout); });
  constexpr int64_t kQueue = int64_t{16} << 20;
  OutputStream output(checkpoint::ShardWriter::open(work_, plan_.layout), kQueue);
  std::vector<std::string> names;
  for (const auto& [name, place] : plan_.layout.places()) names.push_back(name);
  copy_tensors(autoquantize_->tensors(), names, mesh, output);
  output.finish();
  world_.agree(output.error());
  world_.barrier();
  world_.on_root([&] { autoquantize_->remove_candidates(work_); });
}

void Job::publish() {
  world_.on_root([&] {
    checkpoint::remove_tree(progress_folder(work_));
    if (recipe_.report && has_report(record_))
      checkpoint::write_text(work_ + "/ptq-runner/report.json", run_report(recipe_, record_).dump(2) + "\n");
    if (!stats_.arrays.empty()) {
      stats_.attributes = attributes_;
      const StatisticsFiles files{work_ + "/ptq-runner"};
      if (checkpoint::exists(files.details()))
        for (const std::string& name : checkpoint::list_files(files.details()))
          stats_.links["calibration/" + name.substr(0, name.rfind(".h5"))] = "calibration/" + name;
      checkpoint::write_stats(files.main(), stats_);
    }
  });
  Json manifest_json = run_manifest(recipe_, source_, plan_, record_);
  manifest_json["files"] = hash_files(world_, work_);
  world_.on_root([&] {
    checkpoint::write_text(work_ + "/ptq-runner/manifest.json", manifest_json.dump(2) + "\n");
    publish_output(work_, recipe_, *lease_);
  });
  parallel::listen_no_more();
  owns_work_ = false;
  double bytes = 0;
  for (const auto& shard : plan_.layout.shards()) bytes += static_cast<double>(shard.bytes);
  if (const std::string words = native_leftovers(source_, plan_); !words.empty()) log_.warning(words);
  log_.line("loads in:");
  for (const auto& engine : recipes::engine_support(plan_.metadata, recipe_.output_path))
    log_.line(engine.loads ? fmt::format("  {:<13} {}{}", engine.engine, engine.command,
                                         engine.needs.empty() ? "" : "  (needs " + engine.needs + ")")
                           : fmt::format("  {:<13} no: {}", engine.engine, engine.reason));
  log_.line(fmt::format("{}  {}, {:.2f}× smaller than the source, {:.2f} bits per weight, {}, {} in all", recipe_.output_path,
                        human_bytes(bytes), static_cast<double>(source_.weight_bytes) / bytes, plan_.bits_per_weight,
                        recipe_.verify ? fmt::format("{} checks passed", record_.verified_checks) : "not verified",
                        human_seconds(log_.seconds())));
}

}  // namespace

void quantize(parallel::Session& session, const QuantizeOptions& options) {
  Communicator& world = session.world();
  RunLog log(world.rank() == 0, options.verbosity);
  const recipes::Recipe recipe = read_recipe(world, options);
  parallel::listen_for_stops(world.rank() == 0);
  Job job(session, recipe, options.restart, log);
  if (!job.prepare()) return;
  try {
    job.run();
  } catch (const Error& error) {
    job.give_up(error);
    throw;
  }
}

}  // namespace ptq::runner
