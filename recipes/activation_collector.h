#pragma once
// What methods that search want to know of a layer's inputs: magnitudes by channel, Gram matrices and a sample of tokens; of routed experts
// the very tokens that reached them.

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "layers/layer.h"
#include "recipes/gram.h"
#include "recipes/input_source.h"

namespace ptq::recipes {

/// Where the time of a search goes.
struct SearchSeconds {
  double gram = 0;      ///< Gram matrices added up
  double factors = 0;   ///< smoothing factors tried
  double scales = 0;    ///< ranges of groups tried
  double feedback = 0;  ///< error feedback, its factorization included
};
/// Adds the time until it goes out of scope to `seconds`.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), begin_(std::chrono::steady_clock::now()) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point begin_;
};

struct CollectorOptions {
  std::function<InputNeeds(const layers::LayerSpec&, int input_group)> input_needs;
  std::function<bool(const layers::LayerSpec&)> keeps_expert_tokens;
  parallel::Communicator* data = nullptr;   ///< ranks with other tokens of the same layers
  parallel::Communicator* stage = nullptr;  ///< those and the ranks that compute other rows of them
  std::vector<int64_t> row_lengths;         ///< of all calibration rows
};

/// Tokens that one expert of this rank has read.
struct ExpertTokens {
  std::vector<int64_t> positions;
  std::vector<float> weights;         ///< the router's
  std::vector<Tensor> inputs, inner;  ///< pieces [n, H] and [n, I]: what gate and up read, and down
};

/// The hooks communicate over the data ranks: all of them must pass micro-batches of the same number through the same layers.
class ActivationCollector : public InputSource {
 public:
  ActivationCollector(CollectorOptions options, SearchSeconds& seconds);

  void linear_input(const layers::LayerSpec& layer, int input_group, const Tensor& x, const layers::Batch& batch);
  void key_value(const layers::LayerSpec& layer, const Tensor& v);
  void expert_input(const layers::LayerSpec& layer, int expert, int linear, const Tensor& x, const layers::ExpertVisits& visits);

  InputStatistics channels(const layers::LayerSpec& layer, int input_group) override;
  InputStatistics take(const layers::LayerSpec& layer, int input_group, const InputNeeds& needs) override;
  /// Everything that was collected of the group, which stays. Collective over the stage.
  InputStatistics gather(const layers::LayerSpec& layer, int input_group);
  /// The largest magnitude of every channel of this rank's values, [kv heads of this rank · v_head_dim]; undefined if none was seen.
  Tensor value_amax(const layers::LayerSpec& layer);
  /// The largest magnitude of every channel of what each expert's gate and up read, [experts, H], and its down, [experts, I], from the
  /// tokens routed to this rank's experts; 0 for the others. Undefined if this rank saw none.
  struct ExpertChannels {
    Tensor up, down;
  };
  ExpertChannels expert_channels(const layers::LayerSpec& layer);
  /// What reached this rank's experts since the last call, by expert. Empty without keeps_expert_tokens.
  std::map<int, ExpertTokens> take_expert_tokens(const layers::LayerSpec& layer);
  void forget(const layers::LayerSpec& layer);

  /// Bytes of one group's statistics on a rank, without the one row that data ranks pass around.
  static int64_t bytes(const InputNeeds& needs, int64_t channels, int64_t stage_ranks, DType operand);

 private:
  struct Collected {
    Tensor amax;
    std::vector<int64_t> abs_sums;
    std::optional<Gram> gram;
    std::vector<Tensor> sample;
  };
  /// What calibration row `row` reads, [T, C], from the data rank that has it; `mine` is this rank's next row, which it is if it is here.
  /// Collective over the data ranks.
  Tensor shared_row(int64_t row, const Tensor& mine);

  CollectorOptions options_;
  SearchSeconds& seconds_;
  std::vector<int64_t> first_tokens_;  ///< of every calibration row
  int64_t sample_stride_ = 1;
  std::map<std::pair<int64_t, int>, Collected> groups_;  ///< by layer and input group
  std::map<int64_t, Tensor> value_amax_;
  std::map<int64_t, ExpertChannels> expert_channels_;
  std::map<int64_t, std::map<int, ExpertTokens>> experts_;
  Tensor row_;  ///< of another rank
};

}  // namespace ptq::recipes
