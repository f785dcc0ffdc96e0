#pragma once
// How good a checkpoint is on text: perplexity, and against a reference mean KL per token and top-1 agreement; or its logits.

#include <string>

#include "parallel/session.h"
#include "runner/evaluated_model.h"
#include "runner/run_log.h"

namespace ptq::runner {

struct EvaluateOptions {
  std::string model, reference, text;
  std::string config, reference_config;  ///< folders of config.json and tokenizer, where the checkpoints are of training runs
  int64_t samples = 0;                   ///< documents; 0: all
  int64_t sequence_length = 512;
  bool fp32 = false, weights_only = false, json = false;
  bool reference_fp32 = false;    ///< the reference computes in fp32 whatever the model does
  std::string input_ids, logits;  ///< safetensors files, instead of text
  Verbosity verbosity = Verbosity::kNormal;
};

/// Collective over the world: rows are spread over the ranks. Prints the result on rank 0's stdout; losses are summed in row order, so it
/// does not depend on the number of ranks. Throws Errors.
void evaluate(parallel::Session& session, const EvaluateOptions& options);

/// Mean KL(reference || model) of a token, in nats, over all ranks' rows; both ran over the rows `share` of this rank, TokenRows::run of
/// all. Losses are summed in row order. Collective over `world`.
double mean_kl(parallel::Communicator& world, EvaluatedModel& model, EvaluatedModel& reference, const TokenRows& share);

}  // namespace ptq::runner
