// ptq-runner: the command line. Reads flags, calls one subcommand, prints the one error message and returns its exit code.
#include <fmt/format.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>

#include "checkpoint/tokenizer.h"
#include "kernels/core/thread_pool.h"
#include "kernels/ops.h"
#include "parallel/session.h"
#include "recipes/version.h"
#include "runner/evaluate.h"
#include "runner/inspect.h"
#include "runner/machine.h"
#include "runner/quantize.h"
#include "runner/solve.h"
#include "runner/verify.h"

namespace {

using namespace ptq;

struct Arguments {
  runner::QuantizeOptions quantize;
  runner::EvaluateOptions evaluate;
  runner::SolveOptions solve;
  std::string inspect_path, tokenize_model, verify_folder, verify_source, model_config, verify_engine, device = "auto", compute = "bf16",
                                                                                                       reference_compute;
  bool json = false, no_special = false, quiet = false, verbose = false;
  int threads = 0;
};

void add_common(CLI::App& app, Arguments& arguments) {
  app.add_option("--threads", arguments.threads, "compute threads of each rank (default: the processors divided by the ranks on the node)")
      ->envname("PTQ_THREADS");
  app.add_flag("--quiet", arguments.quiet, "print errors and warnings only");
  app.add_flag("--verbose", arguments.verbose, "print more");
  app.add_option("--device", arguments.device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
}

/// Sets up `app` with every subcommand. A first word that is no subcommand is a recipe.
void describe(CLI::App& app, Arguments& arguments) {
  app.set_version_flag("--version", recipes::kProgram);
  app.require_subcommand(1);
  app.footer(
      "A recipe alone is run: ptq-runner RECIPE.yaml [key=value ...], alone or under mpirun or srun.\n"
      "Exit codes: 0 done and verified, 1 verification failed, 2 user error, 3 damaged data, 4 system, 70 bug.");

  auto* run = app.add_subcommand("run", "quantize a checkpoint as a recipe says");
  run->add_option("RECIPE", arguments.quantize.recipe_path, "recipe.yaml")->required();
  run->add_option("OVERRIDES", arguments.quantize.overrides, "key=value, e.g. parallel.tensor=2 output.path=/out");
  run->add_flag("--restart", arguments.quantize.restart, "start over, whatever an unfinished run of this output has done");
  add_common(*run, arguments);

  auto* evaluate =
      app.add_subcommand("evaluate", "perplexity of a checkpoint, plain or quantized; KL and top-1 agreement with a reference");
  auto& options = arguments.evaluate;
  evaluate->add_option("--model", options.model, "folder")->required();
  evaluate->add_option("--reference", options.reference, "folder to compare with");
  evaluate->add_option("--config", options.config, "folder of the model's config.json and tokenizer, where it carries none");
  evaluate->add_option("--reference-config", options.reference_config, "the same for the reference");
  evaluate->add_option("--text", options.text, "documents, .jsonl or .txt");
  evaluate->add_option("--samples", options.samples, "documents to read (default: all)")->check(CLI::NonNegativeNumber);
  evaluate->add_option("--sequence-length", options.sequence_length, "tokens of each document")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  evaluate->add_option("--compute", arguments.compute, "bf16 or fp32")->check(CLI::IsMember({"bf16", "fp32"}))->capture_default_str();
  evaluate->add_option("--reference-compute", arguments.reference_compute, "the same for the reference (default: as --compute)")
      ->check(CLI::IsMember({"bf16", "fp32"}));
  evaluate->add_flag("--weights-only", options.weights_only, "leave activations and KV cache unquantized");
  evaluate->add_option("--input-ids", options.input_ids, "safetensors with input_ids [B, T], instead of --text");
  evaluate->add_option("--logits", options.logits, "safetensors to write: logits F32 [B, T, V]");
  evaluate->add_flag("--json", options.json, "print one JSON object");
  add_common(*evaluate, arguments);

  auto* inspect = app.add_subcommand("inspect", "what a checkpoint is: family, layers, dtypes, bytes, quantized how");
  inspect->add_option("CHECKPOINT", arguments.inspect_path, "folder")->required();
  inspect->add_option("--config", arguments.model_config, "folder of config.json, where the checkpoint carries none");
  inspect->add_flag("--json", arguments.json, "print one JSON object");
  add_common(*inspect, arguments);

  auto* verify = app.add_subcommand("verify", "judge an exported checkpoint; exit 1 if anything is wrong");
  verify->add_option("EXPORT", arguments.verify_folder, "folder")->required();
  verify->add_option("--source", arguments.verify_source, "the checkpoint it was made from: unquantized tensors must be byte-equal");
  verify->add_option("--config", arguments.model_config, "folder of the source's config.json, where the source carries none");
  verify->add_flag("--json", arguments.json, "print one JSON object");
  add_common(*verify, arguments);

  auto* tokenize = app.add_subcommand("tokenize", "{\"text\": ...} per line in, {\"ids\": [...]} per line out");
  tokenize->add_option("MODEL", arguments.tokenize_model, "folder with tokenizer.json")->required();
  tokenize->add_flag("--no-special", arguments.no_special, "without special tokens");
  add_common(*tokenize, arguments);

  auto* solve = app.add_subcommand("solve", "AutoQuantize's decisions for other budgets, from the scores of a run; no weights are read");
  solve->add_option("SCORES", arguments.solve.scores, "scores.h5")->required();
  solve->add_option("--effective-bits", arguments.solve.effective_bits, "stored bits per weight, e.g. 4.5,5,6")
      ->required()
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  solve->add_flag("--json", arguments.solve.json, "print one JSON list");
  add_common(*solve, arguments);
}

void tokenize(const Arguments& arguments) {
  const checkpoint::Tokenizer tokenizer = checkpoint::Tokenizer::open(arguments.tokenize_model);
  int64_t number = 0;
  for (std::string line; std::getline(std::cin, line);) {
    ++number;
    if (line.empty()) continue;
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded() || !json.is_object() || !json.contains("text") || !json.at("text").is_string())
      throw user_error("a line is not {\"text\": ...}", "standard input, line " + std::to_string(number));
    fmt::print("{}\n", nlohmann::json{{"ids", tokenizer.encode(json.at("text").get<std::string>(), !arguments.no_special)}}.dump());
  }
}

void verify(parallel::Session& session, const Arguments& arguments) {
  const runner::VerifyResult result =
      runner::verify_export(arguments.verify_folder, arguments.verify_source, arguments.model_config, nullptr, session.world());
  if (session.world().rank() == 0) {
    if (arguments.json)
      fmt::print("{}\n", nlohmann::ordered_json{{"checks", result.checks}, {"failures", result.failures}}.dump(2));
    else
      for (const auto& failure : result.failures) fmt::print("wrong: {}\n", failure);
    if (!arguments.json) fmt::print("{}: {} checks, {} failures\n", arguments.verify_folder, result.checks, result.failures.size());
    std::fflush(stdout);
  }
  if (!result.failures.empty())
    throw parallel::AgreedError(
        Error(ErrorKind::kCheck, std::to_string(result.failures.size()) + " checks failed", arguments.verify_folder));
}

/// Threads and arithmetic, the same kernel on every rank: the weakest processor's.
void set_up_compute(parallel::Session& session, const Arguments& arguments) {
  parallel::Communicator& world = session.world();
  world.together([&] {
    session.check_task_count();
    if (arguments.device == "cuda")
      throw user_error("this build has no CUDA backend", "--device", "use --device cpu, or build with ./dev build cuda");
  });
  set_num_threads(arguments.threads > 0 ? arguments.threads : runner::default_threads(session.local_ranks()));
  auto weakest = -static_cast<int64_t>(kernels::best_matmul_kernel());
  world.all_reduce_max(std::span<int64_t>(&weakest, 1));
  kernels::set_matmul_kernel(static_cast<kernels::MatmulKernel>(-weakest));
}

void dispatch(parallel::Session& session, CLI::App& app, Arguments& arguments) {
  const std::string command = app.get_subcommands().front()->get_name();
  const auto verbosity = arguments.quiet     ? runner::Verbosity::kQuiet
                         : arguments.verbose ? runner::Verbosity::kVerbose
                                             : runner::Verbosity::kNormal;
  arguments.quantize.verbosity = arguments.evaluate.verbosity = verbosity;
  arguments.evaluate.fp32 = arguments.compute == "fp32";
  arguments.evaluate.reference_fp32 = arguments.reference_compute == "fp32";
  parallel::Communicator& world = session.world();
  if (command == "run") {
    set_up_compute(session, arguments);
    if (arguments.device != "auto") arguments.quantize.overrides.push_back("device=" + arguments.device);
    runner::quantize(session, arguments.quantize);
  } else if (command == "evaluate") {
    world.together([&] {
      const auto& options = arguments.evaluate;
      if (options.text.empty() == options.input_ids.empty())
        throw user_error("evaluate needs either --text or --input-ids", "command line");
      if (options.input_ids.empty() != options.logits.empty()) throw user_error("--input-ids and --logits go together", "command line");
    });
    set_up_compute(session, arguments);
    runner::evaluate(session, arguments.evaluate);
  } else if (command == "verify") {
    set_up_compute(session, arguments);
    verify(session, arguments);
  } else if (command == "solve") {
    arguments.solve.verbose = arguments.verbose;
    world.on_root([&] { runner::solve(arguments.solve); });
  } else {
    world.on_root([&] {
      command == "inspect" ? runner::inspect(arguments.inspect_path, arguments.model_config, arguments.json) : tokenize(arguments);
    });
  }
}

/// An error that only this rank knows of: the others may be waiting for it, so it ends them all.
int leave_alone(parallel::Session& session, const Error& error) {
  const bool alone = session.world().size() == 1;
  fmt::print(stderr, "{}{}\n", alone ? "" : fmt::format("rank {}: ", session.world().rank()), error.report());
  if (!alone) session.abort(error.exit_code());
  return error.exit_code();
}

}  // namespace

int main(int argc, char** argv) {
  // Large buffers go back to the system when they are freed: the peak is what the plan says, not what the heap has kept.
  // One arena: tensors are made by one thread and freed by another, which would leave holes in many.
  mallopt(M_MMAP_THRESHOLD, 1 << 16);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
  mallopt(M_ARENA_MAX, 1);

  std::vector<std::string> words(argv + 1, argv + argc);
  CLI::App app{"Quantizes large language model checkpoints, streamed and sharded over MPI ranks.", "ptq-runner"};
  Arguments arguments;
  describe(app, arguments);
  // A first word that is neither a flag nor a subcommand is a recipe.
  const auto subcommands = app.get_subcommands([](const CLI::App*) { return true; });
  const auto is_first_word = [&](const CLI::App* subcommand) { return subcommand->get_name() == words[0]; };
  if (!words.empty() && words[0][0] != '-' && std::none_of(subcommands.begin(), subcommands.end(), is_first_word))
    words.insert(words.begin(), "run");

  try {
    parallel::Session session = parallel::Session::open(&argc, &argv);
    const bool speaks = session.world().rank() == 0;
    try {
      std::reverse(words.begin(), words.end());
      app.parse(words);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) return speaks ? app.exit(error) : 0;
      if (speaks) fmt::print(stderr, "error: {}\n   fix run ptq-runner --help\n", error.what());
      return 2;
    }
    try {
      dispatch(session, app, arguments);
      return 0;
    } catch (const parallel::AgreedError& error) {
      if (speaks) fmt::print(stderr, "{}\n", error.report());
      return error.exit_code();
    } catch (const Error& error) {
      return leave_alone(session, error);
    } catch (const std::exception& error) {
      return leave_alone(session, bug(error.what()));
    }
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.report());
    return error.exit_code();
  }
}
