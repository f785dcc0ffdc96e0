// How well AutoQuantize's scores order what formats cost in truth: every decision group is quantized alone, in every candidate, and its
// score held beside the KL divergence that it adds on rows which were not scored. And what scoring takes beside a forward pass of the
// same tokens. Usage: sensitivity_bench [MODEL [TEXT]]; without them the llama of $PTQ_SHARED/fixtures or ../shared/fixtures.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoint/output_layout.h"
#include "parallel/session.h"
#include "runner/autoquantize.h"
#include "runner/calibration_rows.h"
#include "runner/mix_judge.h"
#include "runner/run_identity.h"

namespace ptq::runner {
namespace {

/// The place of every value among all; equal ones share the mean of theirs.
std::vector<double> ranks_of(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (size_t i = begin; i < end; ++i) ranks[order[i]] = static_cast<double>(begin + end - 1) / 2;
    begin = end;
  }
  return ranks;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const auto mean = [](const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size()); };
  const double mean_a = mean(a), mean_b = mean(b);
  double both = 0, square_a = 0, square_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    both += (a[i] - mean_a) * (b[i] - mean_b);
    square_a += (a[i] - mean_a) * (a[i] - mean_a);
    square_b += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return both / std::sqrt(square_a * square_b);
}

/// Of a phase in run.jsonl.
nlohmann::json event(const std::string& path, const std::string& phase) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (auto found = nlohmann::json::parse(line); found.at("phase") == phase) return found;
  return {};
}

void run(parallel::Session& session, const std::string& model, const std::string& text, const std::string& work) {
  const recipes::Recipe recipe = recipes::parse_recipe(
      "model: {path: " + model + "}\ncalibration: {data: " + text +
          ", samples: 128, sequence_length: 512, pack: false, drop_short: true}\nquantization: {preset: auto}\noutput: {path: unset}\n",
      "bench", {});
  const SourceModel source = open_source(model);
  const auto rows = read_rows(recipe, source);
  AutoQuantize autoquantize(recipe, source);
  autoquantize.find_scores(rows_fingerprint(rows), rows.size());
  int64_t tokens = 0;
  for (const auto& row : rows) tokens += static_cast<int64_t>(row.size());
  RunLog log(true, Verbosity::kQuiet);
  checkpoint::make_folder(work + "/ptq-runner");
  log.keep_in(work + "/ptq-runner/run.jsonl");
  constexpr int64_t kMemory = int64_t{8} << 30;
  autoquantize.run(session.world(), {}, rows,
                   run_attributes(recipe, source.fingerprint, rows_fingerprint(rows), static_cast<int64_t>(rows.size()), tokens), work,
                   kMemory, log);
  const std::vector<std::vector<int32_t>> held_back(rows.end() - 16, rows.end());
  MixJudge judge(session.world(), open_source(model), held_back, {.host_memory = kMemory / 2, .scratch = work});
  const recipes::Sensitivity& sensitivity = autoquantize.sensitivity();
  std::vector<double> scores, truths;
  for (size_t g = 0; g < sensitivity.groups.size(); ++g) {
    const auto& options = sensitivity.groups[g].options;
    for (size_t o = 0; o < options.size(); ++o) {
      const std::string& preset = sensitivity.presets[static_cast<size_t>(options[o].candidate)];
      if (preset == "none") continue;
      recipes::Mix alone;
      for (const auto& group : sensitivity.groups) alone.choice.push_back(static_cast<int>(group.options.size()) - 1);
      alone.choice[g] = static_cast<int>(o);
      scores.push_back(sensitivity.scores[g][o]);
      truths.push_back(judge.kl(autoquantize.model_of(alone)));
      fmt::print("{:60} {:10} score {:.6f}  KL {:.6f}\n", sensitivity.groups[g].name, preset, scores.back(), truths.back());
    }
  }
  const auto scored = event(work + "/ptq-runner/run.jsonl", "scored");
  const double forward = scored.at("forward_seconds"), backward = scored.at("backward_seconds");
  const int64_t candidates = scored.at("candidates");
  fmt::print("Spearman's rank correlation of score and KL: {:.3f} over {} groups in a format each\n",
             correlation(ranks_of(scores), ranks_of(truths)), scores.size());
  fmt::print("sum of scores / sum of KL: {:.3f}\n",
             std::accumulate(scores.begin(), scores.end(), 0.0) / std::accumulate(truths.begin(), truths.end(), 0.0));
  fmt::print("backward sweep {:.2f} s = {:.2f} x forward sweep {:.2f} s, {} candidates (3 + F = {})\n", backward, backward / forward,
             forward, candidates, 3 + candidates);
}

}  // namespace
}  // namespace ptq::runner

int main(int argc, char** argv) {
  try {
    auto session = ptq::parallel::Session::open(&argc, &argv);
    const char* shared = std::getenv("PTQ_SHARED");
    const std::string fixtures = std::string(shared ? shared : "../shared") + "/fixtures";
    const std::string model = argc > 1 ? argv[1] : fixtures + "/models/llama", text = argc > 2 ? argv[2] : fixtures + "/text/calib.jsonl";
    if (!std::filesystem::exists(model) || !std::filesystem::exists(text)) {
      fmt::print("skipped: {} or {} is not there\n", model, text);
      return 0;
    }
    const std::string work = (std::filesystem::temp_directory_path() / fmt::format("ptq_sensitivity_{}", ::getpid())).string();
    ptq::runner::run(session, model, text, work);
    std::filesystem::remove_all(work);
    return 0;
  } catch (const ptq::Error& error) {
    fmt::print(stderr, "{}\n", error.report());
    return error.exit_code();
  }
}
