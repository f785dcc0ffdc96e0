#include "runner/evaluate.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>

#include "checkpoint/text_data.h"
#include "kernels/ops.h"
#include "runner/evaluated_model.h"
#include "runner/machine.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;
using Rows = std::vector<std::vector<int32_t>>;

/// Rows of logits computed at a time, so that the vocabulary costs tens of megabytes and not T·V.
int64_t logit_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t{32} << 20) / (4 * vocab)); }

Rows read_text(const EvaluateOptions& options) {
  checkpoint::TextRequest request;
  request.files = {options.input_ids.empty() ? options.text : options.input_ids};
  request.samples = options.samples;
  request.sequence_length = options.input_ids.empty() ? options.sequence_length : INT64_MAX / 2;
  request.pack = false;
  const SourceModel source = open_source(options.model, options.config);
  request.vocab_size = source.spec.vocab;
  std::optional<checkpoint::Tokenizer> tokenizer;
  if (const std::string folder = source.tokenizer_folder(); !folder.empty()) tokenizer.emplace(checkpoint::Tokenizer::open(folder));
  return checkpoint::load_rows(request, tokenizer ? &*tokenizer : nullptr);
}

/// What one row adds to the result; sums of a row run in token order.
struct RowScore {
  double loss = 0, reference_loss = 0, kl = 0, same_top1 = 0, tokens = 0;
};

Tensor labels_of(const Rows& rows, const layers::Batch& batch, int64_t first_row) {
  Tensor labels = Tensor::empty({batch.tokens()}, DType::kI32);
  auto* label = labels.data<int32_t>();
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    const auto& row = rows[static_cast<size_t>(batch.first_row - first_row) + s];
    for (size_t t = 0; t < row.size(); ++t) *label++ = t + 1 < row.size() ? row[t + 1] : -1;
  }
  return labels;
}

void score_batch(EvaluatedModel& model, EvaluatedModel* reference, int64_t m, const Tensor& labels, std::vector<RowScore>& scores,
                 int64_t first_row) {
  const layers::Batch& batch = model.batch(m);
  const int64_t step = logit_rows(model.vocab());
  const Tensor states = model.final_states(m);
  const Tensor reference_states = reference ? reference->final_states(m) : Tensor();
  Tensor logits = Tensor::empty({step, model.vocab()}, DType::kF32), reference_logits;
  if (reference) reference_logits = Tensor::empty({step, model.vocab()}, DType::kF32);
  std::vector<double> losses, reference_losses;
  std::vector<kernels::TokenAgreement> agreement;
  for (int64_t begin = 0; begin < batch.tokens(); begin += step) {
    const int64_t end = std::min(batch.tokens(), begin + step);
    Tensor part = logits.rows(0, end - begin);
    model.logits(states, begin, end, part);
    kernels::token_losses(part, labels.rows(begin, end), losses);
    if (reference) {
      Tensor reference_part = reference_logits.rows(0, end - begin);
      reference->logits(reference_states, begin, end, reference_part);
      kernels::token_losses(reference_part, labels.rows(begin, end), reference_losses);
      kernels::token_agreement(reference_part, part, agreement);
    }
    for (int64_t t = begin; t < end; ++t) {
      if (labels.data<int32_t>()[t] < 0) continue;
      const auto i = static_cast<size_t>(t - begin);
      RowScore& score = scores[static_cast<size_t>(batch.row_of(t) - first_row)];
      score.tokens += 1;
      score.loss += losses[i];
      if (!reference) continue;
      score.reference_loss += reference_losses[i];
      score.kl += agreement[i].kl;
      score.same_top1 += agreement[i].same_top1 ? 1 : 0;
    }
  }
}

/// Everyone's rows in row order, added up in that order.
RowScore total(parallel::Communicator& world, const std::vector<RowScore>& mine, int64_t rows) {
  std::vector<int64_t> bytes;
  for (int r = 0; r < world.size(); ++r)
    bytes.push_back(parallel::even_share(rows, world.size(), r).size() * static_cast<int64_t>(sizeof(RowScore)));
  std::vector<RowScore> all(static_cast<size_t>(rows));
  world.all_gather(mine.data(), bytes, all.data());
  RowScore sum;
  for (const RowScore& row : all) {
    sum.loss += row.loss;
    sum.reference_loss += row.reference_loss;
    sum.kl += row.kl;
    sum.same_top1 += row.same_top1;
    sum.tokens += row.tokens;
  }
  return sum;
}

RowScore score_rows(parallel::Communicator& world, EvaluatedModel& model, EvaluatedModel* reference, const TokenRows& share) {
  std::vector<RowScore> scores(share.ids.size());
  for (int64_t m = 0; m < model.micro_batches(); ++m)
    score_batch(model, reference, m, labels_of(share.ids, model.batch(m), share.first), scores, share.first);
  return total(world, scores, static_cast<int64_t>(share.lengths.size()));
}

void print_result(const EvaluateOptions& options, const RowScore& sum, int64_t rows) {
  Json result{{"model", options.model},
              {"perplexity", std::exp(sum.loss / sum.tokens)},
              {"tokens", static_cast<int64_t>(sum.tokens)},
              {"documents", rows}};
  if (!options.reference.empty()) {
    result["reference"] = options.reference;
    result["reference_perplexity"] = std::exp(sum.reference_loss / sum.tokens);
    result["kl"] = sum.kl / sum.tokens;
    result["top1_agreement"] = sum.same_top1 / sum.tokens;
  }
  if (options.json) {
    fmt::print("{}\n", result.dump());
    return;
  }
  fmt::print("perplexity {:.4f}  ({} tokens of {} documents)\n", result["perplexity"].get<double>(), static_cast<int64_t>(sum.tokens),
             rows);
  if (options.reference.empty()) return;
  fmt::print("reference  {:.4f}\nKL(reference || model) {:.6f} nats a token\nsame top-1 token {:.2f} %\n",
             result["reference_perplexity"].get<double>(), result["kl"].get<double>(), 100 * result["top1_agreement"].get<double>());
}

void write_logits(const EvaluateOptions& options, EvaluatedModel& model, parallel::Communicator& world, const Rows& rows,
                  int64_t first_row) {
  for (const auto& row : rows)
    if (row.size() != rows.front().size()) throw user_error("--logits needs rows of one length", options.input_ids);
  const auto length = static_cast<int64_t>(rows.front().size()), vocab = model.vocab();
  const std::string header =
      checkpoint::make_safetensors_header({{"logits", DType::kF32, {static_cast<int64_t>(rows.size()), length, vocab}}});
  world.on_root([&] {
    checkpoint::write_text(options.logits, header);
    std::filesystem::resize_file(options.logits, header.size() + rows.size() * static_cast<size_t>(length * vocab) * sizeof(float));
  });
  world.together([&] {
    const checkpoint::Fd file(::open(options.logits.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file) throw errno_error("open", options.logits, errno);
    const int64_t step = logit_rows(vocab);
    Tensor logits = Tensor::empty({step, vocab}, DType::kF32);
    int64_t offset = static_cast<int64_t>(header.size()) + first_row * length * vocab * 4;
    for (int64_t m = 0; m < model.micro_batches(); ++m) {
      const Tensor states = model.final_states(m);
      for (int64_t begin = 0; begin < states.dim(0); begin += step) {
        Tensor part = logits.rows(0, std::min(states.dim(0), begin + step) - begin);
        model.logits(states, begin, begin + part.dim(0), part);
        for (int64_t done = 0; done < part.bytes();) {
          const auto moved = ::pwrite(file.get(), part.raw() + done, static_cast<size_t>(part.bytes() - done), offset + done);
          if (moved < 0) throw errno_error("pwrite", options.logits, errno);
          done += moved;
        }
        offset += part.bytes();
      }
    }
  });
}

}  // namespace

double mean_kl(parallel::Communicator& world, EvaluatedModel& model, EvaluatedModel& reference, const TokenRows& share) {
  const RowScore sum = score_rows(world, model, &reference, share);
  return sum.kl / std::max(1.0, sum.tokens);
}

void evaluate(parallel::Session& session, const EvaluateOptions& options) {
  parallel::Communicator& world = session.world();
  Rows rows;
  world.together([&] { rows = read_text(options); });
  const auto mesh = parallel::Mesh::make(world, {world.size(), 1, 1});
  const TokenRows share = TokenRows::run(rows, world.size(), world.rank());
  EvaluateSettings settings;
  settings.fp32 = options.fp32;
  settings.weights_only = options.weights_only;
  settings.host_memory = default_host_memory(session.local_ranks()) / (options.reference.empty() ? 1 : 2);
  settings.scratch = std::filesystem::temp_directory_path().string();

  std::optional<EvaluatedModel> model, reference;
  const auto open = [&](std::optional<EvaluatedModel>& slot, const std::string& folder, const std::string& config) {
    SourceModel source;
    world.together([&] {
      source = EvaluatedModel::open(folder, config);
      if (model && source.spec.vocab != model->vocab())
        throw user_error("model and reference have different vocabularies", folder, "compare a model with its own source");
    });
    slot.emplace(std::move(source), mesh, share, settings);
    slot->load_head();
  };
  open(model, options.model, options.config);
  if (!options.logits.empty()) {
    write_logits(options, *model, world, rows, share.first);
    if (world.rank() == 0) fmt::print("{}: logits [{}, {}, {}]\n", options.logits, rows.size(), rows.front().size(), model->vocab());
    return;
  }
  if (!options.reference.empty()) {
    settings.fp32 = options.fp32 || options.reference_fp32;
    open(reference, options.reference, options.reference_config);
  }
  const RowScore sum = score_rows(world, *model, reference ? &*reference : nullptr, share);
  if (sum.tokens == 0) throw parallel::AgreedError(user_error("the text has no document of two tokens or more", options.text));
  if (world.rank() == 0) print_result(options, sum, static_cast<int64_t>(rows.size()));
}

}  // namespace ptq::runner
