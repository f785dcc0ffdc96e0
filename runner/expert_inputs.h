#pragma once
// What routed experts have read: of the experts that one rank owns, from the tokens of all ranks or from an earlier run's statistics.

#include <map>
#include <memory>

#include "parallel/mesh.h"
#include "recipes/activation_collector.h"
#include "runner/expert_chunks.h"

namespace ptq::runner {

class ExpertInputs {
 public:
  virtual ~ExpertInputs() = default;
  /// That the router sent to it.
  virtual int64_t tokens(int expert) const = 0;
  /// Of an expert with tokens: what its gate and up read, or its down. Gram matrices and samples are weighted as the router weights the
  /// tokens; magnitudes are plain.
  virtual recipes::InputStatistics read(int expert, bool down, const recipes::InputNeeds& needs) const = 0;
  /// The expert is not asked for again.
  virtual void drop(int expert) = 0;
};

/// From tokens in memory, which it keeps.
class TokenInputs : public ExpertInputs {
 public:
  int64_t tokens(int expert) const override;
  recipes::InputStatistics read(int expert, bool down, const recipes::InputNeeds& needs) const override;
  void drop(int expert) override { seen_.erase(expert); }

 private:
  friend std::unique_ptr<TokenInputs> gather_expert_inputs(const ExpertChunk&, std::map<int, recipes::ExpertTokens>, const parallel::Mesh&,
                                                           DType);
  /// One expert's tokens in their order among all ranks' tokens.
  struct Seen {
    Tensor inputs, inner;  ///< [n, H], [n, I]
    Tensor weights;        ///< [n] f32: the router's, or ones where the input carries them
  };
  std::map<int, Seen> seen_;
};

/// What reached the experts of this chunk, of all ranks that hold them, goes to their owners. `operand`: dtype of the tokens. Collective
/// over the replicas.
std::unique_ptr<TokenInputs> gather_expert_inputs(const ExpertChunk& chunk, std::map<int, recipes::ExpertTokens> tokens,
                                                  const parallel::Mesh& mesh, DType operand);

/// The linears that read an expert's input: gate and up, or both in one.
std::vector<int> feeding_linears(const layers::MoeSpec& moe, int expert);

}  // namespace ptq::runner
