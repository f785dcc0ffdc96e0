// The promise behind the whole mesh: however the ranks, the experts in memory and the micro-batches are cut, a sweep computes the bits of
// one rank and sees the same statistics.

#include "runner/sweep.h"

#include <gtest/gtest.h>

#include "recipes/observer.h"
#include "tests/mpi/world.h"
#include "tests/support/memory_reader.h"
#include "tests/unit/layers/tiny_layer.h"

namespace ptq::runner {
namespace {

using parallel::MeshShape;
using parallel::Range;
using test::MemoryReader;
using test::world;

/// A described model and random weights for it.
struct Source {
  layers::ModelSpec model;
  MemoryReader reader;

  explicit Source(const std::string& json) : model(test::model_of(json)) {
    uint64_t seed = 0;
    for (const auto& layer : model.layers)
      for (const auto& spec : layer.tensors) {
        const bool is_matrix = spec.shape.size() > 1;
        const float deviation = is_matrix ? 1.5f / std::sqrt(static_cast<float>(spec.shape.back())) : 0.5f;
        reader.add(spec.name, test::random_tensor(spec.shape, DType::kBF16, ++seed, deviation));
      }
    reader.add(model.embedding, test::random_tensor({model.vocab, model.hidden}, DType::kBF16, ++seed));
  }
};

const std::vector<std::string>& models() {
  // 12 heads, which 2, 3 and 4 tensor ranks divide; widths that nothing divides.
  static const std::vector<std::string> all{
      R"({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 22, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 4,
    "intermediate_size": 30, "moe_intermediate_size": 7, "num_hidden_layers": 5, "mlp_only_layers": [0, 3], "num_experts": 5,
    "num_experts_per_tok": 2, "norm_topk_prob": true, "vocab_size": 40})",
      R"({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 22, "num_attention_heads": 12, "num_key_value_heads": 12,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 5, "q_lora_rank": 13, "kv_lora_rank": 11, "intermediate_size": 30,
    "moe_intermediate_size": 7, "num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
    "num_experts_per_tok": 3, "n_shared_experts": 1, "vocab_size": 40})",
      R"({"architectures": ["GptOssForCausalLM"], "hidden_size": 22, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 4,
    "intermediate_size": 9, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "vocab_size": 40})",
      R"({"architectures": ["Llama4ForCausalLM"], "hidden_size": 22, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 4,
    "intermediate_size": 9, "intermediate_size_mlp": 30, "num_hidden_layers": 4, "interleave_moe_layer_step": 2, "num_local_experts": 3,
    "num_experts_per_tok": 1, "attention_chunk_size": 8, "floor_scale": 4, "vocab_size": 40})"};
  return all;
}

/// Five texts of different lengths.
std::vector<std::vector<int32_t>> texts() {
  std::vector<std::vector<int32_t>> rows;
  int32_t id = 3;
  for (const size_t length : {9, 1, 14, 6, 11}) {
    rows.emplace_back();
    while (rows.back().size() < length) rows.back().push_back(id = (id * 17 + 5) % 40);
  }
  return rows;
}

/// Observes; sends tokens to experts that fewer than `minimum` reached.
class ObservingClient : public SweepClient {
 public:
  explicit ObservingClient(int64_t minimum = 0) : minimum_(minimum) {}
  layers::LayerHooks& hooks() override { return observer; }
  std::optional<Error> error() override { return observer.error(); }
  void routed(const layers::LayerSpec& layer, const std::vector<int64_t>& counts) override { observer.count(layer, counts); }
  bool forces_visits() const override { return minimum_ > 0; }
  layers::ForcedVisits forced(const layers::LayerSpec&, const std::vector<int64_t>& counts) override {
    std::vector<int> starved;
    for (size_t e = 0; e < counts.size(); ++e)
      if (counts[e] < minimum_) starved.push_back(static_cast<int>(e));
    return layers::force_visits(starved, minimum_, 41);
  }

  recipes::Observer observer;

 private:
  int64_t minimum_;
};

/// What the ranks of `group` saw together, in a fixed order.
struct Seen {
  std::vector<float> maxima;
  std::vector<int64_t> counts;
};
Seen merged(const layers::ModelSpec& model, const recipes::Observer& observer, parallel::Communicator& group) {
  Seen seen;
  for (const auto& layer : model.layers) {
    const auto found = observer.maxima().find(layer.index);
    const recipes::Observer::LayerMaxima nothing, &here = found != observer.maxima().end() ? found->second : nothing;
    for (int input = 0; input < static_cast<int>(layer.linears.size()); ++input) {
      const auto amax = here.input_amax.find(input);
      seen.maxima.push_back(amax != here.input_amax.end() ? amax->second : -1);
    }
    seen.maxima.insert(seen.maxima.end(), {here.key_amax, here.value_amax});
    for (size_t e = 0; layer.moe() && e < layer.moe()->experts.size(); ++e) {
      const recipes::ExpertStatistics expert = here.experts.empty() ? recipes::ExpertStatistics{} : here.experts[e];
      seen.maxima.insert(seen.maxima.end(), {expert.up_input_amax, expert.down_input_amax});
      seen.counts.insert(seen.counts.end(), {expert.tokens, expert.forced});
    }
  }
  group.all_reduce_max(std::span<float>(seen.maxima));
  group.all_reduce_sum(std::span<int64_t>(seen.counts));
  return seen;
}

SweepOptions options_of(int64_t experts_in_memory, int64_t micro_batch, DType dtype) {
  SweepOptions options;
  options.operand = options.hidden = dtype;
  options.host_memory = int64_t{16} << 30;
  options.micro_batch = micro_batch;
  options.experts_in_memory = experts_in_memory;
  return options;
}

struct Outcome {
  std::vector<Tensor> hidden;  ///< of every text, where this rank knows it
  std::vector<int64_t> known;  ///< 1: some rank knows it
  Seen seen;
  int64_t streamed = 0;
};

Outcome run(const Source& source, const parallel::Mesh& mesh, const SweepOptions& options, int64_t minimum,
            const std::vector<std::vector<int32_t>>& rows = texts()) {
  parallel::Communicator& group = mesh.world();
  Sweep sweep(source.model, source.reader, mesh, TokenRows::dealt(rows, mesh.shape().data, mesh.data_rank()), options);
  ObservingClient client(minimum);

  sweep.run(client, [](const SweepProgress&) {});

  Outcome outcome;
  outcome.hidden.resize(rows.size());
  outcome.streamed = sweep.streamed_experts();
  for (int64_t m = 0; mesh.pipeline_rank() == 0 && m < sweep.micro_batches(); ++m) {
    const layers::Batch& batch = sweep.batch(m);
    const Tensor hidden = sweep.final_hidden(m);
    for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
      std::vector<float> values = test::values_of(hidden.rows(batch.starts[s], batch.starts[s + 1]));
      outcome.hidden[static_cast<size_t>(batch.first_row) + s * static_cast<size_t>(batch.row_step)] =
          test::tensor_of(values, {batch.starts[s + 1] - batch.starts[s], source.model.hidden});
    }
  }
  for (const Tensor& hidden : outcome.hidden) outcome.known.push_back(hidden.defined());
  group.all_reduce_max(std::span<int64_t>(outcome.known));
  outcome.seen = merged(source.model, client.observer, group);
  return outcome;
}

/// Of every shape.
std::vector<parallel::Mesh> meshes() {
  std::vector<parallel::Mesh> all;
  for (int data = 1; data <= world().size(); ++data)
    for (int tensor = 1; data * tensor <= world().size(); ++tensor)
      for (int expert = 1; expert <= data * tensor; ++expert)
        if (world().size() % (data * tensor) == 0 && data * tensor % expert == 0)
          all.push_back(parallel::Mesh::make(world(), {data, world().size() / (data * tensor), tensor, expert}));
  return all;
}

std::string name_of(const MeshShape& shape) {
  return std::to_string(shape.data) + " x " + std::to_string(shape.pipeline) + " x " + std::to_string(shape.tensor) + ", " +
         std::to_string(shape.expert) + " expert ranks";
}

void expect_the_same(const Outcome& many, const Outcome& one) {
  for (size_t row = 0; row < one.hidden.size(); ++row)
    EXPECT_TRUE(!many.hidden[row].defined() || test::same_bits(many.hidden[row], one.hidden[row])) << "text " << row;
  EXPECT_EQ(many.known, std::vector<int64_t>(one.hidden.size(), 1));
  EXPECT_EQ(many.seen.maxima, one.seen.maxima);
  EXPECT_EQ(many.seen.counts, one.seen.counts);
}

TEST(Sweep, GivesTheBitsAndStatisticsOfOneRankOnEveryMesh) {
  const auto self = parallel::make_self_communicator();
  const parallel::Mesh alone = parallel::Mesh::make(*self, {});
  const std::vector<parallel::Mesh> all = meshes();
  for (const std::string& json : models()) {
    const Source source(json);
    const Outcome one = run(source, alone, options_of(0, 0, DType::kBF16), 0);
    const Outcome one_forced = run(source, alone, options_of(0, 0, DType::kBF16), 12);
    for (const parallel::Mesh& mesh : all) {
      SCOPED_TRACE(source.model.family + " on " + name_of(mesh.shape()));

      expect_the_same(run(source, mesh, options_of(0, 0, DType::kBF16), 0), one);
      expect_the_same(run(source, mesh, options_of(2, 0, DType::kBF16), 12), one_forced);
    }
  }
}

TEST(Sweep, MicroBatchesChangeNothing) {
  const auto self = parallel::make_self_communicator();
  const parallel::Mesh alone = parallel::Mesh::make(*self, {});
  const std::vector<parallel::Mesh> all = meshes();
  for (const std::string& json : models()) {
    const Source source(json);
    const bool is_first = json == models().front();
    const DType dtype = is_first ? DType::kF32 : DType::kBF16;
    const Outcome one = run(source, alone, options_of(0, 0, dtype), 12);
    SCOPED_TRACE(source.model.family);

    for (const int64_t experts_in_memory : {0, 1}) expect_the_same(run(source, alone, options_of(experts_in_memory, 1, dtype), 12), one);
    for (const parallel::Mesh& mesh : all) {
      SCOPED_TRACE(name_of(mesh.shape()));
      expect_the_same(run(source, mesh, options_of(is_first ? 0 : 1, 1, dtype), 12), one);
    }
  }
}

TEST(Sweep, ThereMayBeFewerTextsThanRanksAndFewerTokens) {
  const auto self = parallel::make_self_communicator();
  const parallel::Mesh alone = parallel::Mesh::make(*self, {});
  const std::vector<parallel::Mesh> all = meshes();
  const std::vector<std::vector<int32_t>> few{{7}, {3, 9, 1}}, one_token{{7}};
  for (const std::string& json : models()) {
    const Source source(json);
    for (const auto& rows : {few, one_token}) {
      const Outcome one = run(source, alone, options_of(0, 0, DType::kBF16), 12, rows);
      for (const parallel::Mesh& mesh : all) {
        SCOPED_TRACE(source.model.family + " on " + name_of(mesh.shape()) + ", " + std::to_string(rows.size()) + " texts");
        expect_the_same(run(source, mesh, options_of(mesh.shape().data % 2, 1, DType::kBF16), 12, rows), one);
      }
    }
  }
}

TEST(Sweep, StreamsExpertsThatDoNotStay) {
  const Source source(models()[0]);
  const int ranks = world().size();
  const parallel::Mesh spread = parallel::Mesh::make(world(), {.data = ranks, .expert = ranks});
  const parallel::Mesh copied = parallel::Mesh::make(world(), {.data = ranks});

  EXPECT_EQ(run(source, spread, options_of(0, 0, DType::kBF16), 0).streamed, 0);
  EXPECT_EQ(run(source, copied, options_of(2, 0, DType::kBF16), 0).streamed, 2);
}

TEST(Sweep, EveryStarvedExpertIsVisited) {
  const Source source(models()[1]);
  const parallel::Mesh mesh = parallel::Mesh::make(world(), {.data = world().size(), .expert = world().size()});

  const Outcome outcome = run(source, mesh, options_of(1, 0, DType::kBF16), 12);

  int64_t forced = 0;
  for (size_t i = 0; i < outcome.seen.counts.size(); i += 2) {
    EXPECT_GE(outcome.seen.counts[i] + outcome.seen.counts[i + 1], 12) << "expert " << i / 2;
    forced += outcome.seen.counts[i + 1];
  }
  EXPECT_GT(forced, 0) << "a poor choice of the minimum";
}

/// Fails where this rank sees a certain expert.
class FailingClient : public ObservingClient {
 public:
  FailingClient(int64_t expert, bool at_the_end) : expert_(expert), at_the_end_(at_the_end) {}
  void experts_loaded(const ExpertChunk& chunk) override { look_at(chunk, false); }
  void experts_done(const ExpertChunk& chunk) override { look_at(chunk, true); }

 private:
  void look_at(const ExpertChunk& chunk, bool is_end) const {
    if (is_end == at_the_end_ && chunk.layer->index == 2 && chunk.owned.begin <= expert_ && expert_ < chunk.owned.end)
      throw data_error("expert " + std::to_string(expert_) + " is damaged");
  }
  int64_t expert_;
  bool at_the_end_;
};

TEST(Sweep, OneDamagedExpertEndsTheRunOnAllRanks) {
  const Source source(models()[0]);
  for (const parallel::Mesh& mesh : meshes())
    for (const bool at_the_end : {false, true}) {
      const int64_t experts_in_memory = at_the_end == (mesh.shape().data > 1) ? 0 : 1;
      SCOPED_TRACE(name_of(mesh.shape()) + ", " + std::to_string(experts_in_memory) + " experts in memory");
      const auto rows = texts();
      Sweep sweep(source.model, source.reader, mesh, TokenRows::dealt(rows, mesh.shape().data, mesh.data_rank()),
                  options_of(experts_in_memory, 0, DType::kBF16));
      FailingClient client(3, at_the_end);
      std::string message;

      try {
        sweep.run(client, [](const SweepProgress&) {});
      } catch (const parallel::AgreedError& error) {
        message = error.message();
      }

      EXPECT_EQ(message, "expert 3 is damaged");
    }
}

}  // namespace
}  // namespace ptq::runner
