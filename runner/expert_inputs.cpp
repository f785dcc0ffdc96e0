#include "runner/expert_inputs.h"

#include <algorithm>
#include <numeric>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::runner {

namespace {

/// Tokens of one expert that tell what rounding activations costs.
constexpr int64_t kSample = 512;

/// The tokens of owned experts of all replicas.
std::map<int, recipes::ExpertTokens> exchange(const ExpertChunk& chunk, std::map<int, recipes::ExpertTokens> tokens,
                                              const parallel::Mesh& mesh, DType operand) {
  parallel::Communicator& replicas = mesh.replicas();
  if (replicas.size() == 1) return tokens;
  struct Record {
    int64_t position;
    int32_t expert;
    float weight;
  };
  std::vector<Record> records;
  std::vector<int64_t> counts;
  std::vector<std::byte> inputs, inner;
  int64_t input_bytes = 0, inner_bytes = 0;
  const layers::MoeSpec& moe = *chunk.layer->moe();
  input_bytes = chunk.layer->linears[static_cast<size_t>(feeding_linears(moe, 0).front())].in * dtype_bytes(operand);
  inner_bytes = moe.intermediate * dtype_bytes(operand);
  for (int r = 0; r < replicas.size(); ++r) {
    const parallel::Range theirs = parallel::even_share(chunk.mine.size(), replicas.size(), r);
    const auto before = records.size();
    for (int64_t e = chunk.mine.begin + theirs.begin; e < chunk.mine.begin + theirs.end; ++e) {
      const auto found = tokens.find(static_cast<int>(e));
      if (found == tokens.end()) continue;
      for (size_t i = 0; i < found->second.positions.size(); ++i)
        records.push_back({found->second.positions[i], static_cast<int32_t>(e), found->second.weights[i]});
      for (const Tensor& piece : found->second.inputs) inputs.insert(inputs.end(), piece.raw(), piece.raw() + piece.bytes());
      for (const Tensor& piece : found->second.inner) inner.insert(inner.end(), piece.raw(), piece.raw() + piece.bytes());
    }
    counts.push_back(static_cast<int64_t>(records.size() - before));
  }
  tokens.clear();
  const std::vector<int64_t> arriving = replicas.all_to_all(counts);
  const int64_t total = std::accumulate(arriving.begin(), arriving.end(), int64_t{0});
  const auto times = [](const std::vector<int64_t>& values, int64_t bytes) {
    std::vector<int64_t> result;
    for (const int64_t value : values) result.push_back(value * bytes);
    return result;
  };
  std::vector<Record> here(static_cast<size_t>(total));
  replicas.all_to_all(records.data(), times(counts, sizeof(Record)), here.data(), times(arriving, sizeof(Record)));
  const Tensor x = Tensor::empty({total, input_bytes / dtype_bytes(operand)}, operand),
               u = Tensor::empty({total, inner_bytes / dtype_bytes(operand)}, operand);
  replicas.all_to_all(inputs.data(), times(counts, input_bytes), x.raw(), times(arriving, input_bytes));
  replicas.all_to_all(inner.data(), times(counts, inner_bytes), u.raw(), times(arriving, inner_bytes));
  std::map<int, recipes::ExpertTokens> mine;
  for (int64_t i = 0; i < total; ++i) {
    const Record& record = here[static_cast<size_t>(i)];
    recipes::ExpertTokens& kept = mine[record.expert];
    kept.positions.push_back(record.position);
    kept.weights.push_back(record.weight);
    kept.inputs.push_back(x.rows(i, i + 1));
    kept.inner.push_back(u.rows(i, i + 1));
  }
  return mine;
}

/// Pieces of rows as one matrix, row i at rank[i].
Tensor placed(const std::vector<Tensor>& pieces, const std::vector<int64_t>& rank) {
  Tensor whole = Tensor::empty({static_cast<int64_t>(rank.size()), pieces.front().dim(1)}, pieces.front().dtype());
  size_t next = 0;
  for (const Tensor& piece : pieces)
    for (int64_t r = 0; r < piece.dim(0); ++r, ++next)
      std::copy_n(piece.raw() + r * piece.row_bytes(), piece.row_bytes(), whole.raw() + rank[next] * whole.row_bytes());
  return whole;
}

}  // namespace

std::vector<int> feeding_linears(const layers::MoeSpec& moe, int expert) {
  const layers::ExpertLinears& linears = moe.experts[static_cast<size_t>(expert)];
  return linears.gate_up >= 0 ? std::vector<int>{linears.gate_up} : std::vector<int>{linears.gate, linears.up};
}

std::unique_ptr<TokenInputs> gather_expert_inputs(const ExpertChunk& chunk, std::map<int, recipes::ExpertTokens> tokens,
                                                  const parallel::Mesh& mesh, DType operand) {
  tokens = exchange(chunk, std::move(tokens), mesh, operand);
  auto inputs = std::make_unique<TokenInputs>();
  for (auto& [expert, theirs] : tokens) {
    if (theirs.positions.empty()) continue;
    std::vector<int64_t> order(theirs.positions.size()), rank(order.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&positions = theirs.positions](int64_t a, int64_t b) {
      return positions[static_cast<size_t>(a)] < positions[static_cast<size_t>(b)];
    });
    for (size_t i = 0; i < order.size(); ++i) rank[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
    TokenInputs::Seen& seen = inputs->seen_[expert];
    seen.inputs = placed(theirs.inputs, rank);
    seen.inner = placed(theirs.inner, rank);
    seen.weights = Tensor::empty({static_cast<int64_t>(rank.size())}, DType::kF32);
    for (size_t i = 0; i < rank.size(); ++i)
      seen.weights.data<float>()[rank[i]] = chunk.layer->moe()->scales_input ? 1.0f : theirs.weights[i];
    theirs = {};
  }
  return inputs;
}

int64_t TokenInputs::tokens(int expert) const {
  const auto found = seen_.find(expert);
  return found == seen_.end() ? 0 : found->second.inputs.dim(0);
}

recipes::InputStatistics TokenInputs::read(int expert, bool down, const recipes::InputNeeds& needs) const {
  const Seen& seen = seen_.at(expert);
  const Tensor& x = down ? seen.inner : seen.inputs;
  const float* weights = seen.weights.data<float>();
  recipes::InputStatistics input;
  const int64_t tokens = x.dim(0), channels = x.dim(1);
  if (needs.channels) {
    input.amax = Tensor::zeros({channels}, DType::kF32);
    kernels::column_amax(x, input.amax);
    std::vector<int64_t> sums(static_cast<size_t>(channels), 0);
    kernels::column_sums(x, true, sums);
    input.mean_abs = Tensor::empty({channels}, DType::kF32);
    for (int64_t c = 0; c < channels; ++c)
      input.mean_abs.data<float>()[c] =
          static_cast<float>(static_cast<double>(sums[static_cast<size_t>(c)]) / kernels::kColumnSumUnits / static_cast<double>(tokens));
  }
  if (needs.sample) {
    const int64_t stride = std::max<int64_t>(1, (tokens + kSample - 1) / kSample), count = (tokens + stride - 1) / stride;
    input.sample = Tensor::empty({count, channels}, x.dtype());
    input.sample_weights = Tensor::empty({count}, DType::kF32);
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(x.raw() + i * stride * x.row_bytes(), x.row_bytes(), input.sample.raw() + i * x.row_bytes());
      input.sample_weights.data<float>()[i] = weights[i * stride];
    }
    input.sample_worth = static_cast<double>(tokens) / static_cast<double>(count);
  }
  if (!needs.gram) return input;
  Tensor weighted = kernels::converted(x, DType::kF32);
  kernels::scale_rows(weighted, seen.weights);
  for (const parallel::Range& columns : recipes::gram_blocks(channels)) {
    recipes::GramBlock block{columns, Tensor::zeros({columns.size(), columns.size()}, DType::kF32)};
    kernels::gram_add(recipes::columns_of(weighted, columns), 0, columns.size(), block.values);
    kernels::gram_complete(block.values);
    input.gram.push_back(std::move(block));
  }
  return input;
}

}  // namespace ptq::runner
